"""Embedding look-up of int8 rows: reference meaning."""

import torch
from torch import Tensor
from torch.nn import functional

from fxquant.kernels.library import define


def embedding_int8(weight: Tensor, weight_scale: Tensor, indices: Tensor) -> Tensor:
    """Return row `indices` of S_w·q_w as float32, (…, D), for `weight` (V, D) int8 and `weight_scale` (V,) or ()."""
    rows = functional.embedding(indices, weight).to(torch.float32)
    return rows * (weight_scale if weight_scale.ndim == 0 else weight_scale[indices][..., None])


def fake_embedding_int8(weight: Tensor, weight_scale: Tensor, indices: Tensor) -> Tensor:
    """Return an empty tensor of the shape and dtype of `embedding_int8`."""
    return weight.new_empty((*indices.shape, weight.shape[1]), dtype=torch.float32)


EMBEDDING_INT8 = "embedding_int8(Tensor weight, Tensor weight_scale, Tensor indices) -> Tensor"
define(EMBEDDING_INT8, embedding_int8, fake_embedding_int8)
