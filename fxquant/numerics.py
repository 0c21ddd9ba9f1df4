"""The arithmetic of uniform integer quantization; pure functions, x = S·(q − Z).

Zero is exactly representable, rounding is half to even, values outside the range saturate.
Source of the affine scheme: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", equations 1 and 2.
"""

import torch
from torch import Tensor

from fxquant.spec import QParams, QuantSpec

# A scale below this would be subnormal, and its reciprocal would overflow float32.
SMALLEST_SCALE = 2.0**-120


def along(value: Tensor, axis: int | None, ndim: int) -> Tensor:
    """Reshape a (channels,) vector so that it broadcasts along `axis` of a tensor of `ndim` dimensions."""
    if axis is None or value.ndim == 0:
        return value
    shape = [1] * ndim
    shape[axis] = -1
    return value.reshape(shape)


def qparams_from_range(low: Tensor, high: Tensor, spec: QuantSpec, axis: int | None = None) -> QParams:
    """Return the QParams that cover [low, high] and zero (float tensors of one shape).

    Affine: S = (high − low)/(qmax − qmin), Z = round(qmin − low/S). Symmetric signed: Z = 0, S = max|x|/127
    (restricted) or 2·max|x|/255 (full). Symmetric unsigned: Z is the middle, 128. An empty range gets S = 1.
    """
    low, high = low.float().clamp(max=0.0), high.float().clamp(min=0.0)
    if spec.symmetric:
        bound = torch.maximum(-low, high)
        middle = 0 if spec.format.signed else (spec.qmax + 1) // 2
        full = spec.format.signed and spec.range == "full"
        scale = bound * 2.0 / (spec.qmax - spec.qmin) if full else bound / (spec.qmax - middle)
        zero_point = torch.full_like(scale, middle)
    else:
        # Halving first keeps high − low finite for ranges near the end of float32.
        scale = (high / 2 - low / 2) / ((spec.qmax - spec.qmin) / 2)
        zero_point = (spec.qmin - low / scale.clamp(min=SMALLEST_SCALE)).round().clamp(spec.qmin, spec.qmax)
    scale = torch.where(scale > 0, scale.clamp(min=SMALLEST_SCALE), torch.ones_like(scale))
    return QParams(scale, zero_point.to(torch.int32), axis)


def choose_qparams(x: Tensor, spec: QuantSpec) -> QParams:
    """Return the QParams of one tensor from its own minimum and maximum, over the axes that `spec` shares.

    Shapes: () per tensor, (channels,) per channel, x.shape[:-1] + (1,) per token. An empty tensor gets S = 1.
    """
    if spec.granularity == "per-token":
        if x.shape[-1] == 0:
            low = high = x.new_zeros(*x.shape[:-1], 1)
        else:
            low, high = torch.aminmax(x, dim=-1, keepdim=True)
        return qparams_from_range(low, high, spec)
    axis = None if spec.granularity == "per-tensor" else spec.axis
    rows = x.reshape(1, -1) if axis is None else x.movedim(axis, 0).flatten(1) if x.ndim > 1 else x.reshape(-1, 1)
    if rows.shape[1] == 0 or rows.numel() == 0:
        low = high = x.new_zeros(rows.shape[0])
    else:
        low, high = torch.aminmax(rows, dim=1)
    if axis is None:
        low, high = low.reshape(()), high.reshape(())
    return qparams_from_range(low, high, spec, axis)


def quantize(x: Tensor, qparams: QParams, spec: QuantSpec) -> Tensor:
    """Return q = clamp(round(x/S) + Z, qmin, qmax) in the spec's storage dtype, in the shape of `x`."""
    scale = along(qparams.scale, qparams.axis, x.ndim)
    zero_point = along(qparams.zero_point, qparams.axis, x.ndim)
    # float32 cannot hold every int32.
    x = x.double() if spec.format.torch_dtype is torch.int32 else x
    q = (x / scale).round() + zero_point
    return q.clamp(spec.qmin, spec.qmax).to(spec.format.torch_dtype)


def dequantize(q: Tensor, qparams: QParams, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return S·(q − Z) as `dtype`, in the shape of `q`."""
    scale = along(qparams.scale, qparams.axis, q.ndim)
    zero_point = along(qparams.zero_point, qparams.axis, q.ndim)
    return ((q.to(torch.int32) - zero_point).to(torch.float32) * scale).to(dtype)


def fake_quantize(x: Tensor, qparams: QParams, spec: QuantSpec) -> Tensor:
    """Return what `x` becomes when quantized and read back, as float32."""
    return dequantize(quantize(x, qparams, spec), qparams)


def sqnr(reference: Tensor, candidate: Tensor) -> float:
    """Return the signal-to-quantization-noise ratio in dB, 10·log10(Σ reference² / Σ (reference − candidate)²).

    Identical tensors give inf; a silent reference with any noise gives -inf.
    """
    signal = reference.double().pow(2).sum()
    noise = (reference.double() - candidate.double()).pow(2).sum()
    if noise == 0:
        return float("inf")
    return float(10 * torch.log10(signal / noise))
