"""`fxquant::x86_linear_int8`: the meaning of `linear_int8`, on oneDNN.

Float results agree with the reference to a few ulp of the accumulators, integer results to one step.
"""

import torch
from torch import Tensor

from fxquant.kernels.library import define
from fxquant.kernels.reference import linear as reference
from fxquant.kernels.reference.epilogue import requantize
from fxquant.kernels.x86.gemm import FLOAT_OUTPUT, Output, finish_, fused, rows_by_int_mm
from fxquant.kernels.x86.isa import isa
from fxquant.kernels.x86.packing import PackedWeight, packed_weight


def linear_int8(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    out_scale: Tensor | None,
    out_zero_point: Tensor | None,
    out_qmin: int,
    out_qmax: int,
    out_dtype: torch.dtype,
) -> Tensor:
    """Return what `reference.linear_int8` does; fastest with a scalar `x_scale` and uint8 `x`."""
    requantization = (out_scale, out_zero_point, out_qmin, out_qmax, out_dtype)
    if isa() == "portable" or x.numel() == 0 or weight.numel() == 0:
        quantized = (x, x_scale, x_zero_point, weight, weight_scale)
        return reference.linear_int8(*quantized, bias, residual, activation, *requantization)
    shape = (*x.shape[:-1], weight.shape[0])
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    packed = packed_weight(weight, weight_scale)
    if x_scale.numel() > 1:
        y = rows_by_int_mm(*_signed(rows, x_scale, x_zero_point), packed, bias)
        return requantize(finish_(y.view(shape), activation, residual), *requantization)
    if residual is not None and (activation != "none" or residual.shape != shape):
        y = _per_tensor(rows, x_scale, x_zero_point, packed, bias, activation, None, FLOAT_OUTPUT)
        return requantize(y.view(shape).add_(residual), *requantization)
    if out_scale is None or out_zero_point is None or out_dtype not in (torch.int8, torch.uint8):
        y = _per_tensor(rows, x_scale, x_zero_point, packed, bias, activation, residual, FLOAT_OUTPUT)
        return requantize(y.view(shape), *requantization)
    output = Output(out_dtype, float(out_scale.item()), int(out_zero_point.item()))
    y = _per_tensor(rows, x_scale, x_zero_point, packed, bias, activation, residual, output).view(shape)
    limits = torch.iinfo(out_dtype)
    narrowed = out_qmin > limits.min or out_qmax < limits.max
    return y.clamp_(out_qmin, out_qmax) if narrowed else y


def _per_tensor(
    rows: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor,
    weight: PackedWeight,
    bias: Tensor | None,
    activation: str,
    residual: Tensor | None,
    output: Output,
) -> Tensor:
    """Run the fused kernel on x (M, K); oneDNN wants it as uint8 and the bias as float32."""
    scale, zero_point = float(x_scale.item()), int(x_zero_point.item())
    if bias is not None and bias.dtype is torch.int32:
        bias = bias * (weight.scale * scale)
    if rows.dtype is torch.int8:
        rows, zero_point = rows.view(torch.uint8).bitwise_xor(128), zero_point + 128
    if residual is not None:
        residual = residual.reshape(rows.shape[0], -1).contiguous()
    return fused(rows, scale, zero_point, weight, bias, activation, residual, output)


def _signed(rows: Tensor, scale: Tensor, zero_point: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return x (M, K) as int8, its scale and minus its zero point, (M, 1) float32."""
    minus_zero_point = zero_point.to(torch.float32).reshape(-1, 1).neg()
    if rows.dtype is torch.uint8:
        rows, minus_zero_point = rows.bitwise_xor(128).view(torch.int8), minus_zero_point + 128.0
    return rows, scale.reshape(-1, 1), minus_zero_point


define(f"x86_{reference.LINEAR_INT8}", linear_int8, reference.fake_linear_int8)
