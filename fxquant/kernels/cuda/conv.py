"""`fxquant::int8_conv`: convolutions over one or two axes, as an 8-bit product of their windows.

A weight (N, C, …) is int8 (N, K) of its taps, channels innermost, with zeros behind its rows as those of linears have
(gemm.py). Images are laid out place by place, with their padding at the zero point; windows are copied one behind the
other and are the rows of `int8_gemm`. Results have their channels side by side, as the next convolution reads them.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from fxquant.kernels.cuda import gemm
from fxquant.kernels.cuda.launch_gemm import BYTES, RESULTS, Epilogue, Operands
from fxquant.kernels.cuda.triton_support import define_with_triton
from fxquant.kernels.layout import LAYOUTS
from fxquant.kernels.reference import conv as reference
from fxquant.kernels.reference.epilogue import ACTIVATIONS


def pack(weight: Tensor) -> Tensor:
    """Return an int8 weight (N, C, …) as (N, K), filled up to a multiple of 16 behind each row."""
    return gemm.pack(weight.movedim(1, -1).flatten(1))


def unpack(packed: Tensor, channels: int, kernel: Sequence[int]) -> Tensor:
    """Return the int8 weight (N, C, …) that `pack` took."""
    own = packed[:, : prod(kernel) * channels]
    return own.reshape(len(packed), *kernel, channels).movedim(-1, 1).contiguous()


@LAYOUTS.register("filters_in_rows")
def _plain(packed: Tensor, like: Tensor) -> Tensor:
    """Return the weight that `pack` took, of the shape of `like`."""
    return unpack(packed, like.shape[1], like.shape[2:])


def int8_conv(
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
    *requantization: Any,
) -> Tensor:
    """Return what the reference `conv_int8` does, without groups, from a packed weight.

    `weight_sum` is Σ w of each row, int32 (N,), and `kernel` the size of a filter.
    """
    operands = (x, x_scale, x_zero_point, unpack(packed, x.shape[1], kernel), weight_scale, bias, residual, activation)
    return reference.channels_last(reference.conv_int8(*operands, stride, padding, dilation, 1, *requantization))


# ── on the device ─────────────────────────────────────────────────────────────────────────────────────────────────


def _triton(*arguments: Any) -> Tensor:
    x, x_scale, x_zero_point, packed, weight_scale, weight_sum, bias, residual, activation, *rest = arguments
    kernel, stride, padding, dilation, out_scale, _, _, _, out_dtype = rest
    if activation != reference.ADD_RELU:
        ACTIVATIONS[activation]  # raises for an unknown one
    shape = reference.output_shape(x, len(packed), kernel, stride, padding, dilation)
    if not prod(shape) or x.dtype not in BYTES or out_dtype not in (RESULTS if out_scale is None else BYTES):
        return int8_conv(*arguments)
    images = _padded(x, x_zero_point, padding)
    rows = windows(images, shape[2:], kernel, stride, dilation)
    scale, zero_point = (_by_row(each, rows) for each in (x_scale, x_zero_point))
    added = None if residual is None else residual.movedim(1, -1).reshape(*rows.shape[:-1], len(packed))
    operands = Operands(rows, scale, zero_point, packed, weight_scale, weight_sum, bias, added)
    y = gemm.on_device(operands, Epilogue(activation, *rest[4:]))
    return y.reshape(shape[0], *shape[2:], shape[1]).movedim(-1, 1)


def _padded(x: Tensor, zero_point: Tensor, padding: Sequence[int]) -> Tensor:
    """Return images (B, C, …) as (B, …, C), with places where x is 0 around them."""
    places = x.movedim(1, -1)
    if not any(padding):
        return places.contiguous()
    sizes = [size + 2 * pad for size, pad in zip(x.shape[2:], padding, strict=True)]
    least = zero_point.to(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))
    wide = least.expand(x.shape[0], *sizes, x.shape[1]).contiguous()
    wide[(slice(None), *(slice(pad, size - pad) for size, pad in zip(sizes, padding, strict=True)))] = places
    return wide


def windows(
    images: Tensor, places: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """Return the windows of images (B, …, C) as rows, (B, places, K), with the channels of a tap side by side."""
    own = images.stride()
    steps = [distance * step for distance, step in zip(own[1:-1], stride, strict=True)]
    gaps = [distance * gap for distance, gap in zip(own[1:-1], dilation, strict=True)]
    shape = (images.shape[0], *places, *kernel, images.shape[-1])
    seen = images.as_strided(shape, (own[0], *steps, *gaps, own[-1]))
    return seen.reshape(images.shape[0], prod(places), prod(kernel) * images.shape[-1])


def _by_row(value: Tensor, rows: Tensor) -> Tensor:
    """Return what belongs to all or to each image for each of the rows (B, places, K)."""
    return value if value.numel() == 1 else value.reshape(-1, 1, 1).expand(*rows.shape[:-1], 1).contiguous()


def _fake(x: Tensor, *rest: Any) -> Tensor:
    packed, kernel, stride, padding, dilation, out_scale, out_dtype = rest[2], *rest[8:13], rest[-1]
    shape = reference.output_shape(x, packed.shape[0], kernel, stride, padding, dilation)
    return reference.empty_channels_last(x, shape, torch.float32 if out_scale is None else out_dtype)


define_with_triton(
    "int8_conv(Tensor x, Tensor x_scale, Tensor x_zero_point, Tensor packed, Tensor weight_scale, Tensor weight_sum, "
    "Tensor? bias, Tensor? residual, str activation, int[] kernel, int[] stride, int[] padding, int[] dilation, "
    "Tensor? out_scale, Tensor? out_zero_point, int out_qmin, int out_qmax, ScalarType out_dtype) -> Tensor",
    int8_conv,
    _triton,
    _fake,
)
