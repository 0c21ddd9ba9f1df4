"""Linears of experts: rows sorted by expert, each group multiplied with the weight of its own; reference meaning.

The weights of E experts [E, N, K] are one matrix [E·N, K] of their rows, so that a scale per channel is one per expert
and channel.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from fxquant.kernels.library import define
from fxquant.kernels.reference import linear as reference


def groups(offsets: Tensor) -> Iterator[tuple[int, slice]]:
    """Yield each expert that has rows with these; `offsets` (E,) are where the groups end."""
    start = 0
    for expert, end in enumerate(offsets.tolist()):
        if end > start:
            yield expert, slice(start, end)
            start = end


def channels(weight: Tensor, offsets: Tensor) -> int:
    """Return N of a weight (E·N, …)."""
    return weight.shape[0] // offsets.shape[0]


def grouped_linear(x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    """Return row s of x (S, K) times the weight of its expert, (S, N); rows behind the last offset are zero."""
    n = channels(weight, offsets)
    y = x.new_zeros((x.shape[0], n))
    for expert, rows in groups(offsets):
        y[rows] = functional.linear(x[rows], weight[expert * n : (expert + 1) * n])
    return y


def grouped_linear_int8(
    x: Tensor, x_scale: Tensor, x_zero_point: Tensor, weight: Tensor, weight_scale: Tensor, offsets: Tensor
) -> Tensor:
    """Return `grouped_linear` as float32 (S, N) for x (S, K) int8 or uint8 and weight (E·N, K) int8.

    `x_scale` (float32) and `x_zero_point` (int32) are () or, per token, (S, 1); `weight_scale` is () or (E·N,).
    """
    n = channels(weight, offsets)
    y = x.new_zeros((x.shape[0], n), dtype=torch.float32)
    for expert, rows in groups(offsets):
        own = slice(expert * n, (expert + 1) * n)
        by_row = x_scale if x_scale.ndim == 0 else x_scale[rows]
        zero_point = x_zero_point if x_zero_point.ndim == 0 else x_zero_point[rows]
        scale = weight_scale if weight_scale.ndim == 0 else weight_scale[own]
        epilogue = (None, None, "none", None, None, 0, 0, torch.float32)
        y[rows] = reference.linear_int8(x[rows], by_row, zero_point, weight[own], scale, *epilogue)
    return y


def grouped_linear_weight_int8(x: Tensor, weight: Tensor, weight_scale: Tensor, offsets: Tensor) -> Tensor:
    """Return `grouped_linear` of float x (S, K) with weight S_w·q_w, (E·N, K) int8; `weight_scale` is () or (E·N,)."""
    scale = weight_scale if weight_scale.ndim == 0 else weight_scale[:, None]
    return grouped_linear(x, weight.float() * scale, offsets)


def _fake(x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], channels(weight, offsets)))


def _fake_int8(
    x: Tensor, x_scale: Tensor, x_zero_point: Tensor, weight: Tensor, weight_scale: Tensor, offsets: Tensor
) -> Tensor:
    return x.new_empty((x.shape[0], channels(weight, offsets)), dtype=torch.float32)


def _fake_weight_int8(x: Tensor, weight: Tensor, weight_scale: Tensor, offsets: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], channels(weight, offsets)))


define("grouped_linear(Tensor x, Tensor weight, Tensor offsets) -> Tensor", grouped_linear, _fake)
define(
    "grouped_linear_int8(Tensor x, Tensor x_scale, Tensor x_zero_point, Tensor weight, Tensor weight_scale, "
    "Tensor offsets) -> Tensor",
    grouped_linear_int8,
    _fake_int8,
)
define(
    "grouped_linear_weight_int8(Tensor x, Tensor weight, Tensor weight_scale, Tensor offsets) -> Tensor",
    grouped_linear_weight_int8,
    _fake_weight_int8,
)
