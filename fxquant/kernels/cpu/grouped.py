"""`fxquant::packed_grouped_linear_dynamic_int8`: linears of experts on packed weights, one GEMM for a group of rows."""

import torch
from torch import Tensor

from fxquant.kernels.cpu import packed
from fxquant.kernels.library import define
from fxquant.kernels.reference.grouped import groups

ops = torch.ops.fxquant


def pack_experts(weight: Tensor, experts: int) -> Tensor:
    """Return an int8 weight (E·N, K) as the packed weights of all experts, [E, N/64, K/4, 64, 4]."""
    return torch.stack([packed.pack(each) for each in weight.chunk(experts)])


def grouped_linear_dynamic_int8(
    x: Tensor,
    packed_weight: Tensor,
    weight_scale: Tensor,
    weight_sum: Tensor,
    offsets: Tensor,
    dtype: str,
    symmetric: bool,
    range: str,
) -> Tensor:
    """Return `grouped_linear` of float32 x (S, K), quantized per token; scale () or (E·N,), sums (E·N,)."""
    n = weight_sum.shape[0] // offsets.shape[0]
    y = x.new_zeros((x.shape[0], n))
    for expert, rows in groups(offsets):
        own = slice(expert * n, (expert + 1) * n)
        scale = weight_scale if weight_scale.ndim == 0 else weight_scale[own]
        given = (x[rows], packed_weight[expert], scale, weight_sum[own])
        y[rows] = ops.packed_linear_dynamic_int8(*given, None, None, "none", dtype, symmetric, range)
    return y


def _fake(
    x: Tensor,
    packed_weight: Tensor,
    weight_scale: Tensor,
    weight_sum: Tensor,
    offsets: Tensor,
    dtype: str,
    symmetric: bool,
    range: str,
) -> Tensor:
    return x.new_empty((x.shape[0], weight_sum.shape[0] // offsets.shape[0]))


define(
    "packed_grouped_linear_dynamic_int8(Tensor x, Tensor packed, Tensor weight_scale, Tensor weight_sum, "
    "Tensor offsets, str dtype, bool symmetric, str range) -> Tensor",
    grouped_linear_dynamic_int8,
    _fake,
)
