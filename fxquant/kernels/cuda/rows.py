"""`fxquant::quantize_rows` and `norm_quantize_…`: activations become integers in one pass, after a norm or without.

The integers, scales and zero points are those of numerics.py, to the bit; a norm may differ from torch's in the last
places, and so may what is made of it.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fxquant import numerics
from fxquant.kernels import qdq
from fxquant.kernels.cuda.launch_rows import Norm, Static, launch_rows, launch_static, row_spec, serves
from fxquant.kernels.cuda.triton_support import define_with_triton, takes_triton
from fxquant.kernels.library import implement
from fxquant.spec import QParams


def quantize_rows(x: Tensor, dtype: str, symmetric: bool, range: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return (q, S, Z) of float x (…, K), each row quantized over its own range: q (…, K), S and Z (…, 1).

    `dtype` ("int8" or "uint8"), `symmetric` and `range` are the fields of a QuantSpec.
    """
    return qdq.quantize_dynamic(x, row_spec(dtype, symmetric, range))


def norm_quantize_rows(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    norm: str,
    eps: float,
    dtype: str,
    symmetric: bool,
    range: str,
    keep: bool,
) -> list[Tensor]:
    """Return `quantize_rows` of the normalized x, [q, S, Z], and behind them the normalized x if it is to be kept.

    Args:
        x: float (…, K).
        weight: (K,), or None for ones.
        bias: (K,), or None for zeros; there is none where `norm` is "rms".
        norm: "layer", (x − mean)/√(variance + eps), or "rms", x/√(mean of squares + eps).
        eps: what keeps the root from zero.
        dtype: "int8" or "uint8".
        symmetric: as in a QuantSpec.
        range: as in a QuantSpec.
        keep: whether something else reads the normalized x.
    """
    y = normalized(x, weight, bias, norm, eps)
    return [*quantize_rows(y, dtype, symmetric, range), *([y] if keep else [])]


def norm_quantize_static(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    norm: str,
    eps: float,
    scale: Tensor,
    zero_point: Tensor,
    qmin: int,
    qmax: int,
    dtype: torch.dtype,
    keep: bool,
) -> list[Tensor]:
    """Return [q], normalized x quantized by one scale () and zero point (), and behind it the normalized x if kept."""
    y = normalized(x, weight, bias, norm, eps)
    q = numerics.quantize_to(y, QParams(scale, zero_point), qmin, qmax, dtype)
    return [q, *([y] if keep else [])]


def normalized(x: Tensor, weight: Tensor | None, bias: Tensor | None, norm: str, eps: float) -> Tensor:
    """Return the layer norm or root-mean-square norm of x along its last axis."""
    if norm == "rms":
        return functional.rms_norm(x, x.shape[-1:], weight, eps)
    return functional.layer_norm(x, x.shape[-1:], weight, bias, eps)


# ── on the device ─────────────────────────────────────────────────────────────────────────────────────────────────


def _triton_rows(x: Tensor, dtype: str, symmetric: bool, range: str) -> tuple[Tensor, Tensor, Tensor]:
    spec = row_spec(dtype, symmetric, range)
    if not serves(x, spec.format.torch_dtype):
        return quantize_rows(x, dtype, symmetric, range)
    q, scale, zero_point = launch_rows(x, spec)
    return q, scale, zero_point


def _triton_norm_rows(*arguments: Any) -> list[Tensor]:
    x, weight, bias, norm, eps, dtype, symmetric, range, keep = arguments
    spec = row_spec(dtype, symmetric, range)
    if not serves(x, spec.format.torch_dtype):
        return norm_quantize_rows(*arguments)
    return launch_rows(x, spec, Norm(norm, weight, bias, eps), keep)


def _triton_norm_static(*arguments: Any) -> list[Tensor]:
    x, weight, bias, norm, eps, scale, zero_point, qmin, qmax, dtype, keep = arguments
    if not serves(x, dtype):
        return norm_quantize_static(*arguments)
    return launch_static(x, Static(scale, zero_point, qmin, qmax, dtype), Norm(norm, weight, bias, eps), keep)


def quantize_static(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, dtype: torch.dtype) -> Tensor:
    """Return `fxquant::quantize_static` of x, by the kernel that takes rows."""
    if not (takes_triton(x) and serves(x, dtype)):
        return qdq.quantize(x, scale, zero_point, None, qmin, qmax, dtype)
    (q,) = launch_static(x, Static(scale, zero_point, qmin, qmax, dtype))
    return q


def _fake_rows(x: Tensor, dtype: str, symmetric: bool, range: str) -> tuple[Tensor, Tensor, Tensor]:
    spec = row_spec(dtype, symmetric, range)
    q = x.new_empty(x.shape, dtype=spec.format.torch_dtype)
    one_a_row = (*x.shape[:-1], 1)
    return q, x.new_empty(one_a_row, dtype=torch.float32), x.new_empty(one_a_row, dtype=torch.int32)


def _fake_norm_rows(x: Tensor, *rest: Any) -> list[Tensor]:
    *_, dtype, symmetric, range, keep = rest
    return [*_fake_rows(x, dtype, symmetric, range), *([x.new_empty(x.shape)] if keep else [])]


def _fake_norm_static(x: Tensor, *rest: Any) -> list[Tensor]:
    *_, dtype, keep = rest
    return [x.new_empty(x.shape, dtype=dtype), *([x.new_empty(x.shape)] if keep else [])]


define_with_triton(
    "quantize_rows(Tensor x, str dtype, bool symmetric, str range) -> (Tensor, Tensor, Tensor)",
    quantize_rows,
    _triton_rows,
    _fake_rows,
)
define_with_triton(
    "norm_quantize_rows(Tensor x, Tensor? weight, Tensor? bias, str norm, float eps, str dtype, bool symmetric, "
    "str range, bool keep) -> Tensor[]",
    norm_quantize_rows,
    _triton_norm_rows,
    _fake_norm_rows,
)
define_with_triton(
    "norm_quantize_static(Tensor x, Tensor? weight, Tensor? bias, str norm, float eps, Tensor scale, "
    "Tensor zero_point, int qmin, int qmax, ScalarType dtype, bool keep) -> Tensor[]",
    norm_quantize_static,
    _triton_norm_static,
    _fake_norm_static,
)
implement("quantize_static", quantize_static, "CUDA")
