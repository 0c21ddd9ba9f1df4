"""Dynamic quantization of activations in few passes over memory; the integers equal numerics.py's to the bit.

Rounding and the conversion to 8 bits come from one float32 addition: 1.5·2^23 + x/S is rounded half to even to an
integer, whose low byte is that of round(x/S). The zero point may be added after the rounding only, since an odd one
would turn ties the other way.

Integers come as int8 or uint8 as the GEMM wants them, whatever the spec's own dtype: uint8 holds 128 more. Zero
points are always those of the int8 form.
"""

import math
from ctypes import c_float
from functools import lru_cache

import torch
from torch import Tensor

from fxquant import numerics
from fxquant.spec import QuantSpec

MAGIC = 1.5 * 2.0**23
# From so many values on, a pass over them costs more than the small operations that can save it.
_MANY = 1 << 18
# Tensors, because a Python number costs its conversion to one at every call.
_STEPS, _SHIFT = torch.tensor(255.0), torch.tensor(128.0)


@lru_cache(maxsize=64)
def _row(size: int, value: float) -> Tensor:
    return torch.full((size,), value)


def _excess(dtype: torch.dtype) -> int:
    """Return what the integers of `dtype` are more than their int8 form."""
    return 128 if dtype is torch.uint8 else 0


def _is_default(spec: QuantSpec) -> bool:
    return spec.dtype == "uint8" and not spec.symmetric


def quantize_rows(x: Tensor, spec: QuantSpec, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize each row of float32 `x` (M, K), K > 0, by the per-token `spec`; returns (q, S, −Z).

    Shapes: q (M, K) of `dtype`, int8 or uint8; S and −Z (M, 1) float32.
    """
    if _is_default(spec):
        return _affine_rows(x, dtype)
    scale, zero_point = numerics.choose_qparams(x, spec)[:2]
    excess = _excess(spec.format.torch_dtype)
    minus_zero_point = excess - zero_point.to(torch.float32)
    # 128 is even: adding it before the rounding leaves ties as they are.
    base = MAGIC + _excess(dtype)
    work = torch.addcdiv(_row(x.shape[-1], base), x, scale).sub_(minus_zero_point)
    work.clamp_(base + spec.qmin - excess, base + spec.qmax - excess)
    return _low_byte(work, dtype), scale, minus_zero_point


def _affine_rows(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """`quantize_rows` for uint8 affine.

    A row of zeros gets another S than numerics.py gives it, which changes nothing, since q − Z is 0 there. A row whose
    range is beyond float32 gives NaN.
    """
    low = x.amin(-1, True).clamp_max_(0.0)
    high = x.amax(-1, True).relu_()
    scale = high.sub(low).div_(_STEPS).clamp_min_(numerics.SMALLEST_SCALE)
    below = low.div_(scale).round_()
    # No value can end below the range; above it, by one step, only where both ends of the range were rounded outwards.
    if dtype is torch.uint8 and x.numel() >= _MANY and not bool(high.div_(scale).round_().sub_(below).amax() > 255):
        q = _low_byte(torch.addcdiv(_row(x.shape[-1], MAGIC), x, scale), dtype).add_(below.neg().byte())
        return q, scale, below.add_(_SHIFT)
    base = MAGIC if dtype is torch.uint8 else MAGIC - 128
    work = torch.addcdiv(_row(x.shape[-1], base), x, scale).sub_(below).clamp_max_(base + 255)
    return _low_byte(work, dtype), scale, below.add_(_SHIFT)


def quantize_whole(x: Tensor, spec: QuantSpec, dtype: torch.dtype) -> tuple[Tensor, float, int]:
    """Quantize float32 `x` over the range of the whole tensor; returns (q, S, Z) with q of `dtype`."""
    scale, zero_point = _whole_qparams(x, spec)
    excess, base = _excess(spec.format.torch_dtype), MAGIC + _excess(dtype)
    zero_point -= excess
    work = x.div(scale).add_(base).add_(zero_point)
    work.clamp_(base + spec.qmin - excess, base + spec.qmax - excess)
    return _low_byte(work, dtype), scale, zero_point


def _low_byte(work: Tensor, dtype: torch.dtype) -> Tensor:
    # Going through the bits is vectorised for both dtypes, the conversion of floats to uint8 is not.
    return work.view(torch.int32).char() if dtype is torch.int8 else work.view(torch.int32).byte()


def _whole_qparams(x: Tensor, spec: QuantSpec) -> tuple[float, int]:
    """Return scale and zero point of the whole of `x` as numerics.py gives them.

    For uint8 affine they are computed in Python: float64 rounded to float32 after each operation is float32
    arithmetic, and takes a tenth of the time of as many operations on tensors of one element.
    """
    if _is_default(spec):
        low, high = (end.item() for end in torch.aminmax(x))
        low, high = min(low, 0.0), max(high, 0.0)
        if math.isfinite(low) and math.isfinite(high):
            span = c_float(high - low).value
            scale = max(c_float(span / 255.0).value, numerics.SMALLEST_SCALE)
            return scale, -round(c_float(low / scale).value)
    qparams = numerics.choose_qparams(x, spec)
    return float(qparams.scale.item()), int(qparams.zero_point.item())
