"""`fxquant::packed_conv_*`: the convolutions of our own C++ kernels, and what they mean where no compiler made those.

A weight [N, C/groups, …] is a matrix of its taps, channels innermost, packed for each group as packed.py packs those of
linears: the blocks of all groups one behind the other. Where each channel has a filter of its own, it is float32
[taps, ⌈N/64⌉·64], one column a channel, zero beyond N. Results have their channels side by side in memory.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fxquant.kernels import qdq
from fxquant.kernels.cpu.packed import COLUMNS, pack, unpack
from fxquant.kernels.layout import LAYOUTS
from fxquant.kernels.library import define
from fxquant.kernels.reference.conv import channels_last, empty_channels_last, output_shape
from fxquant.kernels.reference.conv import conv_int8 as reference

# Taps of a filter up to which float32 sums of 8-bit products are exact.
MOST_TAPS = 1024


def is_depthwise(shape: Sequence[int], groups: int) -> bool:
    """Say whether a weight of this shape is a filter for each channel, which has a kernel of its own."""
    return groups == shape[0] and shape[1] == 1 and groups > 1 and prod(shape[2:]) <= MOST_TAPS


def pack_filters(weight: Tensor, groups: int) -> Tensor:
    """Return an int8 weight (N, C/groups, …) in blocks [groups·⌈N/groups/64⌉, K/4, 64, 4], or one row a tap."""
    if is_depthwise(weight.shape, groups):
        taps = weight.flatten(1).t().float()
        return functional.pad(taps, (0, -len(weight) % COLUMNS)).contiguous()
    matrix = weight.movedim(1, -1).flatten(1)
    return torch.cat([pack(part) for part in matrix.chunk(groups)])


def unpack_filters(packed: Tensor, shape: Sequence[int], groups: int) -> Tensor:
    """Return the int8 weight of this shape that `pack_filters` took."""
    n, inner, *kernel = shape
    if packed.ndim == 2:
        return packed[:, :n].t().to(torch.int8).reshape(n, inner, *kernel).contiguous()
    parts = [unpack(part, n // groups, inner * prod(kernel)) for part in packed.chunk(groups)]
    return torch.cat(parts).reshape(n, *kernel, inner).movedim(-1, 1).contiguous()


@LAYOUTS.register("packed_filters")
def _plain(packed: Tensor, like: Tensor, groups: int) -> Tensor:
    """Return the weight that `pack_filters` took, of the shape of `like`."""
    return unpack_filters(packed, like.shape, groups)


def conv_int8(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor,
    packed: Tensor,
    weight_scale: Tensor,
    weight_sum: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    *requantization: Any,
) -> Tensor:
    """Return what the reference `conv_int8` does, with a float32 bias, from a packed weight; `kernel` is its size."""
    weight = unpack_filters(packed, (len(weight_sum), x.shape[1] // groups, *kernel), groups)
    operands = (x, x_scale, x_zero_point, weight, weight_scale, bias, residual, activation)
    return channels_last(reference(*operands, stride, padding, dilation, groups, *requantization))


def conv_dynamic_int8(
    x: Tensor,
    packed: Tensor,
    weight_scale: Tensor,
    weight_sum: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    dtype: str,
    granularity: str,
    symmetric: bool,
    range: str,
) -> Tensor:
    """Return activation(conv(x, w) + bias) + residual, float32, for float32 x quantized per sample or per tensor."""
    q, scale, zero_point = qdq.quantize_dynamic(x.float(), qdq.dynamic_spec(dtype, granularity, None, symmetric, range))
    tail = (bias, residual, activation, kernel, stride, padding, dilation, groups, None, None, 0, 0, torch.float32)
    return conv_int8(q, scale, zero_point, packed, weight_scale, weight_sum, *tail)


def _empty(x: Tensor, weight_sum: Tensor, options: Sequence[Any], dtype: torch.dtype) -> Tensor:
    return empty_channels_last(x, output_shape(x, weight_sum.shape[0], *options), dtype)


def _fake(x: Tensor, *rest: Any) -> Tensor:
    dtype = torch.float32 if rest[13] is None else rest[17]
    return _empty(x, rest[4], rest[8:12], dtype)


def _fake_dynamic(x: Tensor, *rest: Any) -> Tensor:
    return _empty(x, rest[2], rest[6:10], torch.float32)


_OPTIONS = "int[] kernel, int[] stride, int[] padding, int[] dilation, int groups"
define(
    "packed_conv_int8(Tensor x, Tensor x_scale, Tensor x_zero_point, Tensor packed, Tensor weight_scale, "
    f"Tensor weight_sum, Tensor? bias, Tensor? residual, str activation, {_OPTIONS}, Tensor? out_scale, "
    "Tensor? out_zero_point, int out_qmin, int out_qmax, ScalarType out_dtype) -> Tensor",
    conv_int8,
    _fake,
)
define(
    "packed_conv_dynamic_int8(Tensor x, Tensor packed, Tensor weight_scale, Tensor weight_sum, Tensor? bias, "
    f"Tensor? residual, str activation, {_OPTIONS}, str dtype, str granularity, bool symmetric, str range) -> Tensor",
    conv_dynamic_int8,
    _fake_dynamic,
)
