"""The Q/DQ ops `fxquant::quantize`, `dequantize`, `dequantize_groups`, `choose_qparams`: numerics.py as graph ops."""

from functools import lru_cache

import torch
from torch import Tensor

from fxquant import numerics
from fxquant.kernels.library import define
from fxquant.spec import QParams, QuantSpec


@lru_cache(maxsize=256)
def dynamic_spec(dtype: str, granularity: str, axis: int | None, symmetric: bool, range: str) -> QuantSpec:
    """Return the QuantSpec of activations quantized at run time; raises `ConfigError` for an unknown field value."""
    return QuantSpec(dtype=dtype, granularity=granularity, axis=axis, symmetric=symmetric, dynamic=True, range=range)


def quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None, qmin: int, qmax: int, dtype: torch.dtype
) -> Tensor:
    """Return clamp(round(x/scale) + zero_point, qmin, qmax) as `dtype`, in the shape of `x`."""
    return numerics.quantize_to(x, QParams(scale, zero_point, axis), qmin, qmax, dtype)


def dequantize(q: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None) -> Tensor:
    """Return scale·(q − zero_point) as float32, in the shape of `q`."""
    return numerics.dequantize(q, QParams(scale, zero_point, axis))


def dequantize_groups(q: Tensor, scale: Tensor, zero_point: Tensor, group_size: int) -> Tensor:
    """Return scale·(q − zero_point) as float32 for a scale for each group of `group_size` values along the last axis.

    Shapes: q (…, K), scale (…, ⌈K/group_size⌉), zero_point () or as the scale, of any integer dtype.
    """
    return numerics.dequantize(q, QParams(scale, zero_point, None, group_size))


def choose_qparams(
    x: Tensor, dtype: str, granularity: str, axis: int | None, symmetric: bool, range: str
) -> tuple[Tensor, Tensor]:
    """Return the scale (float32) and zero point (int32) of `x` from its own minimum and maximum.

    Shapes: () per tensor, (channels,) per channel, x.shape[:-1] + (1,) per token, x.shape[:1] + (1, …) per sample.
    """
    qparams = numerics.choose_qparams(x, dynamic_spec(dtype, granularity, axis, symmetric, range))
    return qparams.scale, qparams.zero_point


def quantize_dynamic(x: Tensor, spec: QuantSpec) -> tuple[Tensor, Tensor, Tensor]:
    """Return `x` quantized by its own minimum and maximum, with the scale and zero point of `choose_qparams`."""
    qparams = numerics.choose_qparams(x, spec)
    return numerics.quantize(x, qparams, spec), qparams.scale, qparams.zero_point


def _fake_quantize_op(
    x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None, qmin: int, qmax: int, dtype: torch.dtype
) -> Tensor:
    return x.new_empty(x.shape, dtype=dtype)


def _fake_dequantize(q: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None) -> Tensor:
    return q.new_empty(q.shape, dtype=torch.float32)


def _fake_dequantize_groups(q: Tensor, scale: Tensor, zero_point: Tensor, group_size: int) -> Tensor:
    return q.new_empty(q.shape, dtype=torch.float32)


def _fake_choose_qparams(
    x: Tensor, dtype: str, granularity: str, axis: int | None, symmetric: bool, range: str
) -> tuple[Tensor, Tensor]:
    spec = dynamic_spec(dtype, granularity, axis, symmetric, range)
    shape: tuple[int, ...] = ()
    if spec.granularity == "per-token":
        shape = (*x.shape[:-1], 1)
    elif spec.granularity == "per-sample":
        shape = (*x.shape[:1], *[1] * (x.ndim - 1))
    elif spec.axis is not None:
        shape = (x.shape[spec.axis],)
    return x.new_empty(shape, dtype=torch.float32), x.new_empty(shape, dtype=torch.int32)


define(
    "quantize(Tensor x, Tensor scale, Tensor zero_point, int? axis, int qmin, int qmax, ScalarType dtype) -> Tensor",
    quantize,
    _fake_quantize_op,
)
define("dequantize(Tensor q, Tensor scale, Tensor zero_point, int? axis) -> Tensor", dequantize, _fake_dequantize)
define(
    "dequantize_groups(Tensor q, Tensor scale, Tensor zero_point, int group_size) -> Tensor",
    dequantize_groups,
    _fake_dequantize_groups,
)
define(
    "choose_qparams(Tensor x, str dtype, str granularity, int? axis, bool symmetric, str range) -> (Tensor, Tensor)",
    choose_qparams,
    _fake_choose_qparams,
)
