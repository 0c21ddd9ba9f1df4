"""`fxquant::x86_linear_weight_int8` and `x86_embedding_int8`: plain int8 weights by torch's float operators."""

import torch
from torch import Tensor
from torch.nn import functional

from fxquant.kernels.library import define
from fxquant.kernels.reference import embedding as reference_embedding
from fxquant.kernels.reference import linear as reference_linear
from fxquant.kernels.x86.gemm import finish_


def linear_weight_int8(
    x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, residual: Tensor | None, activation: str
) -> Tensor:
    """Return what the reference `linear_weight_int8` does; the scale is applied to whichever is smaller, w or x·wᵀ."""
    rows = x.reshape(-1, x.shape[-1]).float()
    wide = weight.float()
    if rows.shape[0] < weight.shape[1]:
        y = functional.linear(rows, wide).mul_(weight_scale)
        y = y if bias is None else y.add_(bias)
    else:
        y = functional.linear(rows, wide.mul_(weight_scale.reshape(-1, 1)), bias)
    return finish_(y.view(*x.shape[:-1], weight.shape[0]), activation, residual).to(x.dtype)


def embedding_int8(weight: Tensor, weight_scale: Tensor, indices: Tensor) -> Tensor:
    """Return what the reference `embedding_int8` does."""
    rows = functional.embedding(indices, weight).to(torch.float32)
    if weight_scale.ndim == 0:
        return rows.mul_(weight_scale)
    return rows.mul_(weight_scale[indices].unsqueeze(-1))


define(f"x86_{reference_linear.LINEAR_WEIGHT_INT8}", linear_weight_int8, reference_linear.fake_linear_weight_int8)
define(f"x86_{reference_embedding.EMBEDDING_INT8}", embedding_int8, reference_embedding.fake_embedding_int8)
