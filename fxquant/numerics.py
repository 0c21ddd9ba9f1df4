"""The arithmetic of uniform integer quantization, and of float8 with a scale; pure functions, x = S·(q − Z).

Zero is exactly representable, rounding is half to even, values outside the range saturate. Of float8 Z is 0, and q is
x/S rounded to the format.
Source of the affine scheme: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", equations 1 and 2.
"""

import torch
from torch import Tensor
from torch.nn import functional

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


def spread(value: Tensor, qparams: QParams, shape: torch.Size) -> Tensor:
    """Return a scale or zero point of `qparams` so that it broadcasts against a tensor of `shape`."""
    if qparams.group_size is None or value.ndim == 0:
        return along(value, qparams.axis, len(shape))
    return value.repeat_interleave(qparams.group_size, dim=-1)[..., : shape[-1]]


def qparams_from_range(low: Tensor, high: Tensor, spec: QuantSpec, axis: int | None = None) -> QParams:
    """Return the QParams that cover [low, high] and zero (float tensors of one shape).

    Affine: S = (high − low)/(qmax − qmin), Z = round(qmin − low/S). Symmetric signed: Z = 0, S = max|x|/127
    (restricted) or 2·max|x|/255 (full), of float8 max|x|/448. Symmetric unsigned: Z is the middle, 128. An empty range
    gets S = 1, one with NaN S = NaN.
    """
    low, high = low.float().clamp(max=0.0), high.float().clamp(min=0.0)
    if spec.symmetric:
        bound = torch.maximum(-low, high)
        middle = 0 if spec.format.signed else (spec.qmax + 1) // 2
        full = spec.format.signed and spec.range == "full"
        # The divisor is halved rather than the bound doubled: 2·max|x| may overflow float32.
        scale = bound / ((spec.qmax - spec.qmin) / 2 if full else spec.qmax - middle)
        zero_point = torch.full_like(scale, middle)
    else:
        # Halving first keeps high − low finite for ranges near the end of float32.
        scale = (high / 2 - low / 2) / ((spec.qmax - spec.qmin) / 2)
        zero_point = (spec.qmin - low / scale.clamp(min=SMALLEST_SCALE)).round().clamp(spec.qmin, spec.qmax)
    scale = torch.where(scale == 0, torch.ones_like(scale), scale.clamp(min=SMALLEST_SCALE))
    return QParams(scale, zero_point.nan_to_num().to(torch.int32), axis, spec.group_size)


def choose_qparams(x: Tensor, spec: QuantSpec) -> QParams:
    """Return the QParams of one tensor from its own minimum and maximum, over the axes that `spec` shares.

    Shapes as `value_range` gives them. An empty tensor gets S = 1.
    """
    low, high = value_range(x, spec)
    return qparams_from_range(low, high, spec, spec.axis)


def value_range(x: Tensor, spec: QuantSpec) -> tuple[Tensor, Tensor]:
    """Return the minimum and maximum of `x` over the axes that `spec` shares, 0 where there is nothing; NaN propagates.

    Shapes: () per tensor, (channels,) per channel, x.shape[:-1] + (1,) per token, x.shape[:1] + (1, …) per sample,
    x.shape[:-1] + (groups,) per group.
    """
    if spec.granularity == "per-tensor":
        return torch.aminmax(x) if x.numel() else (x.new_zeros(()), x.new_zeros(()))
    if spec.granularity == "per-sample":
        return sample_range(x)
    if spec.group_size is not None:
        groups = as_groups(x, spec.group_size)
        return groups.amin(dim=-1), groups.amax(dim=-1)
    per_token = spec.granularity == "per-token"
    rows = x if per_token else as_rows(x, spec.axis)
    if rows.ndim and rows.shape[-1] == 0:
        empty = rows.new_zeros(*rows.shape[:-1], 1) if per_token else rows.new_zeros(rows.shape[0])
        return empty, empty
    # Apart, both reductions are vectorised; torch.aminmax along an axis is not, and takes fifteen times as long.
    return rows.amin(dim=-1, keepdim=per_token), rows.amax(dim=-1, keepdim=per_token)


def sample_range(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the minimum and maximum for each index of the first axis, with the rank of `x`; 0 where nothing is."""
    if not x.numel():
        empty = x.new_zeros(*x.shape[:1], *[1] * (x.ndim - 1))
        return empty, empty
    axes = tuple(range(1, x.ndim))
    return (x.amin(axes, keepdim=True), x.amax(axes, keepdim=True)) if axes else (x, x)


def as_rows(x: Tensor, axis: int | None) -> Tensor:
    """Return `x` as (channels, values) with a row per index of `axis`, or as (1, values) where `axis` is None."""
    if axis is None:
        return x.reshape(1, -1)
    return x.movedim(axis, 0).unsqueeze(-1).flatten(1)


def as_groups(x: Tensor, size: int) -> Tensor:
    """Return `x` (…, K) as (…, ⌈K/size⌉, size); zeros, which every range holds, fill up a shorter last group."""
    padded = functional.pad(x, (0, -x.shape[-1] % size))
    return padded.reshape(*x.shape[:-1], padded.shape[-1] // size, size)


def quantize(x: Tensor, qparams: QParams, spec: QuantSpec) -> Tensor:
    """Return q = clamp(round(x/S) + Z, qmin, qmax) in the spec's storage dtype, in the shape of `x`."""
    return quantize_to(x, qparams, spec.qmin, spec.qmax, spec.format.torch_dtype)


def quantize_to(x: Tensor, qparams: QParams, qmin: int, qmax: int, dtype: torch.dtype) -> Tensor:
    """Return q = clamp(round(x/S) + Z, qmin, qmax) as `dtype`, in the shape of `x`; float8 has no Z, and keeps NaN."""
    scale, zero_point = (spread(each, qparams, x.shape) for each in (qparams.scale, qparams.zero_point))
    # float32 cannot hold every int32, and a half-precision quotient would be rounded twice.
    x = x.to(torch.promote_types(x.dtype, torch.float64 if dtype is torch.int32 else torch.float32))
    if dtype.is_floating_point:
        return (x / scale).clamp_(qmin, qmax).to(dtype)
    q = (x / scale).round_().add_(zero_point).clamp_(qmin, qmax)
    # Going through int32 is several times faster on CPU: the direct conversion to uint8 is not vectorised.
    return q.to(torch.int32).to(dtype)


def dequantize(q: Tensor, qparams: QParams, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return S·(q − Z) as `dtype`, in the shape of `q`."""
    scale, zero_point = (spread(each, qparams, q.shape) for each in (qparams.scale, qparams.zero_point))
    if q.dtype.is_floating_point:
        return (q.to(torch.float32) * scale).to(dtype)
    # The difference of two int32 may need 33 bits.
    wide = torch.int64 if q.dtype is torch.int32 else torch.int32
    return ((q.to(wide) - zero_point).to(torch.float32) * scale).to(dtype)


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
