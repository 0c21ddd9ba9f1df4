"""Convolutions over one or two axes with int8 weights: reference meaning.

With x = S_x·(q_x − Z_x) and w = S_w·q_w every result is S_x·S_w·Σ (q_x − Z_x)·q_w, an exact sum of integers. Padding
adds places where x is zero, which is where q_x = Z_x.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fxquant.kernels.library import define
from fxquant.kernels.reference.epilogue import finish_exactly, requantize, scaled
from fxquant.numerics import along

ADD_RELU = "add_relu"  # an activation that comes behind the sum with the residual
_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d}


def accumulate(
    x: Tensor,
    x_zero_point: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Return Σ (q_x − Z_x)·q_w as int32 [B, N, …], for x [B, C, …] int8 or uint8 and weight [N, C/groups, …] int8.

    float64 holds the sums; what an implementation that transforms its input may be off by is rounded away.
    """
    places = (x.to(torch.int32) - x_zero_point).double()
    convolve: Any = _CONVOLUTIONS[x.ndim - 2]
    sums: Tensor = convolve(places, weight.double(), None, stride, padding, dilation, groups)
    return sums.round().to(torch.int32)


def conv_int8(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    out_scale: Tensor | None,
    out_zero_point: Tensor | None,
    out_qmin: int,
    out_qmax: int,
    out_dtype: torch.dtype,
) -> Tensor:
    """Return activation(S_x·S_w·Σ (q_x − Z_x)·q_w + bias) + residual, quantized if `out_scale` is given.

    - `x` is [B, C, …] with one or two axes behind the channels, int8 or uint8; `x_scale` (float32) and `x_zero_point`
      (int32) are () or, per sample, [B, 1, …].
    - `weight` is [N, C/groups, …] int8, symmetric; `weight_scale` is () or [N].
    - `bias` is [N]: float32, or int32 in units of S_x·S_w, added to the sum; then `x_scale` must be ().
    - `residual` is float32, of the shape of the result; the activation "add_relu" is relu behind the sum with it.
    - `out_scale` () float32 with `out_zero_point` () int32: the output is `out_dtype` in [out_qmin, out_qmax].
      Without it the output is float32, and the other out_… arguments mean nothing.
    """
    sums = accumulate(x, x_zero_point, weight, stride, padding, dilation, groups)
    if bias is not None and bias.dtype is torch.int32:
        sums, bias = sums + along(bias, 1, x.ndim), None
    wide = None if bias is None else along(bias, 1, x.ndim)
    y = scaled(sums, x_scale * along(weight_scale, 1, x.ndim), wide)
    if activation == ADD_RELU:
        y = torch.relu(finish_exactly(y, "none", residual))
    else:
        y = finish_exactly(y, activation, residual)
    return requantize(y, out_scale, out_zero_point, out_qmin, out_qmax, out_dtype)


def output_shape(
    x: Tensor,
    columns: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> list[Any]:
    """Return the shape [B, N, …] of a convolution's result."""
    axes = zip(x.shape[2:], kernel, stride, padding, dilation, strict=True)
    return [
        x.shape[0],
        columns,
        *((size + 2 * pad - gap * (side - 1) - 1) // step + 1 for size, side, step, pad, gap in axes),
    ]


def channels_last(y: Tensor) -> Tensor:
    """Return [B, N, …] with the channels of a place side by side in memory."""
    return y.movedim(1, -1).contiguous().movedim(-1, 1)


def empty_channels_last(x: Tensor, shape: Sequence[Any], dtype: torch.dtype) -> Tensor:
    """Return an empty tensor [B, N, …] of this shape, laid out as `channels_last` does, where x is."""
    batch, columns, *places = shape
    return x.new_empty((batch, *places, columns), dtype=dtype).movedim(-1, 1)


def _fake(x: Tensor, x_scale: Tensor, x_zero_point: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    stride, padding, dilation, out_scale, out_dtype = *rest[4:7], rest[8], rest[12]
    shape = output_shape(x, weight.shape[0], weight.shape[2:], stride, padding, dilation)
    return x.new_empty(shape, dtype=torch.float32 if out_scale is None else out_dtype)


define(
    "conv_int8(Tensor x, Tensor x_scale, Tensor x_zero_point, Tensor weight, Tensor weight_scale, Tensor? bias, "
    "Tensor? residual, str activation, int[] stride, int[] padding, int[] dilation, int groups, Tensor? out_scale, "
    "Tensor? out_zero_point, int out_qmin, int out_qmax, ScalarType out_dtype) -> Tensor",
    conv_int8,
    _fake,
)
