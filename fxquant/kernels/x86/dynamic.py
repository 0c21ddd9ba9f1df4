"""`fxquant::x86_linear_dynamic_int8`: choose_qparams, quantize and linear_int8 in one op, float32 in and out.

The integers equal those of the three ops to the bit, the float results to a few ulp of the accumulators.
"""

import torch
from torch import Tensor

from fxquant.kernels.library import define
from fxquant.kernels.qdq import dynamic_spec, quantize_dynamic
from fxquant.kernels.reference import linear as reference
from fxquant.kernels.x86.activations import quantize_rows, quantize_whole
from fxquant.kernels.x86.gemm import FLOAT_OUTPUT, finish_, fused, rows_by_int_mm, rows_by_qlinear, single_row
from fxquant.kernels.x86.isa import isa
from fxquant.kernels.x86.packing import packed_weight
from fxquant.spec import QuantSpec

# Where `_int_mm`, which costs less to call but packs nothing, is at least level with oneDNN's fused kernel.
_FEW_ROWS, _SMALL_WEIGHT = 128, 1 << 20


def linear_dynamic_int8(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    dtype: str,
    granularity: str,
    symmetric: bool,
    range: str,
) -> Tensor:
    """Return activation(x_q·wᵀ + bias) + residual, (…, N) float32, with x (…, K) float32 quantized as the spec says.

    `dtype`, `granularity` ("per-tensor" or "per-token"), `symmetric` and `range` are the fields of a QuantSpec;
    uint8 affine per-token is the fastest. `weight`, `weight_scale`, float32 `bias` and `residual` are those of
    `linear_int8`.
    """
    spec = dynamic_spec(dtype, granularity, None, symmetric, range)
    if isa() == "portable" or x.numel() == 0 or weight.numel() == 0:
        return _portable(x, weight, weight_scale, bias, residual, activation, spec)
    packed = packed_weight(weight, weight_scale)
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    if rows.shape[0] == 1:
        y = single_row(*quantize_whole(rows, spec, torch.int8), packed, bias)
    elif granularity == "per-tensor":
        q, scale, zero_point = quantize_whole(rows, spec, torch.uint8)
        y = fused(q, scale, zero_point + 128, packed, bias, activation, None, FLOAT_OUTPUT)
        activation = "none"
    elif rows.shape[0] <= _FEW_ROWS and weight.numel() < _SMALL_WEIGHT:
        y = rows_by_int_mm(*quantize_rows(rows, spec, torch.int8), packed, bias)
    else:
        y = rows_by_qlinear(*quantize_rows(rows, spec, torch.uint8), packed, bias)
    return finish_(y.view(*x.shape[:-1], weight.shape[0]), activation, residual)


def _portable(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    spec: QuantSpec,
) -> Tensor:
    q, scale, zero_point = quantize_dynamic(x, spec)
    epilogue = (bias, residual, activation, None, None, 0, 0, torch.float32)
    return reference.linear_int8(q, scale, zero_point, weight, weight_scale, *epilogue)


def _fake_linear_dynamic_int8(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    dtype: str,
    granularity: str,
    symmetric: bool,
    range: str,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


define(
    "x86_linear_dynamic_int8(Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias, Tensor? residual, "
    "str activation, str dtype, str granularity, bool symmetric, str range) -> Tensor",
    linear_dynamic_int8,
    _fake_linear_dynamic_int8,
)
