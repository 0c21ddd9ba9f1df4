"""`fxquant::packed_*`: the ops that our own C++ kernels run, and what they mean where no compiler made those.

A weight is packed once, on lowering, into a plain int8 tensor [N/64, K/4, 64, 4]: element (b, d, c, i) is
weight[64·b + c, 4·d + i], and zero beyond N or K. The implementations here unpack and call the reference, so a
lowered graph runs on any machine; native.py puts the C++ ones before them on CPUs that have them.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fxquant.kernels import qdq
from fxquant.kernels.layout import LAYOUTS
from fxquant.kernels.library import define
from fxquant.kernels.reference import embedding as reference_embedding
from fxquant.kernels.reference import linear as reference

COLUMNS, DEPTH = 64, 4
# Features up to which the C++ kernels are exact: they multiply Σ_k weight with a zero point in two halves of 16 bits.
DEEPEST = 32767


def pack(weight: Tensor) -> Tensor:
    """Return an int8 weight (N, K) in blocks [N/64, K/4, 64, 4]."""
    n, k = weight.shape
    beyond = (0, -k % DEPTH, 0, -n % COLUMNS)
    padded = functional.pad(weight, beyond) if any(beyond) else weight  # `pad` copies also where it adds nothing
    blocks = padded.reshape(padded.shape[0] // COLUMNS, COLUMNS, padded.shape[1] // DEPTH, DEPTH)
    return blocks.permute(0, 2, 1, 3).contiguous()


def unpack(packed: Tensor, n: int, k: int) -> Tensor:
    """Return the int8 weight (n, k) that `pack` took."""
    blocks, depths, _, _ = packed.shape
    return packed.permute(0, 2, 1, 3).reshape(blocks * COLUMNS, depths * DEPTH)[:n, :k].contiguous()


@LAYOUTS.register("packed")
def _plain(packed: Tensor, like: Tensor) -> Tensor:
    """Return the weight that `pack` took, of the shape of `like`."""
    return unpack(packed, *like.shape)


def column_sums(weight: Tensor) -> Tensor:
    """Return Σ_k weight[n, k] as int32 (N,), which the zero point of the activations is multiplied with."""
    # torch sums a copy in int32: of some rows at a time it is small
    return torch.cat([rows.sum(dim=1, dtype=torch.int32) for rows in torch.split(weight, 4 * COLUMNS)])


def linear_dynamic_int8(
    x: Tensor,
    packed: Tensor,
    weight_scale: Tensor,
    weight_sum: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    dtype: str,
    symmetric: bool,
    range: str,
) -> Tensor:
    """Return activation(x·wᵀ + bias) + residual, (…, N) float32, for float32 x (…, K) quantized per token."""
    q, scale, zero_point = qdq.quantize_dynamic(x, qdq.dynamic_spec(dtype, "per-token", None, symmetric, range))
    weight = unpack(packed, weight_sum.shape[0], x.shape[-1])
    epilogue = (bias, residual, activation, None, None, 0, 0, torch.float32)
    return reference.linear_int8(q, scale, zero_point, weight, weight_scale, *epilogue)


def linear_int8(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor,
    packed: Tensor,
    weight_scale: Tensor,
    weight_sum: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    out_scale: Tensor | None,
    out_zero_point: Tensor | None,
    out_qmin: int,
    out_qmax: int,
    out_dtype: torch.dtype,
) -> Tensor:
    """Return what the reference `linear_int8` does, with a float32 bias, from a packed weight."""
    weight = unpack(packed, weight_sum.shape[0], x.shape[-1])
    epilogue = (bias, residual, activation, out_scale, out_zero_point, out_qmin, out_qmax, out_dtype)
    return reference.linear_int8(x, x_scale, x_zero_point, weight, weight_scale, *epilogue)


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, dtype: torch.dtype) -> Tensor:
    """Return `fxquant::quantize` of float32 x with one scale for all of it."""
    return qdq.quantize(x, scale, zero_point, None, qmin, qmax, dtype)


def embedding_int8(weight: Tensor, weight_scale: Tensor, indices: Tensor) -> Tensor:
    """Return what the reference `embedding_int8` does."""
    return reference_embedding.embedding_int8(weight, weight_scale, indices)


def _fake_dynamic(x: Tensor, packed: Tensor, weight_scale: Tensor, weight_sum: Tensor, *_: object) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight_sum.shape[0]), dtype=torch.float32)


def _fake_linear(x: Tensor, *rest: Any) -> Tensor:
    weight_sum, out_scale, out_dtype = rest[4], rest[8], rest[-1]
    dtype = torch.float32 if out_scale is None else out_dtype
    return x.new_empty((*x.shape[:-1], weight_sum.shape[0]), dtype=dtype)


def _fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(x, dtype=dtype)


define(
    "packed_linear_dynamic_int8(Tensor x, Tensor packed, Tensor weight_scale, Tensor weight_sum, Tensor? bias, "
    "Tensor? residual, str activation, str dtype, bool symmetric, str range) -> Tensor",
    linear_dynamic_int8,
    _fake_dynamic,
)
define(
    "packed_linear_int8(Tensor x, Tensor x_scale, Tensor x_zero_point, Tensor packed, Tensor weight_scale, "
    "Tensor weight_sum, Tensor? bias, Tensor? residual, str activation, Tensor? out_scale, Tensor? out_zero_point, "
    "int out_qmin, int out_qmax, ScalarType out_dtype) -> Tensor",
    linear_int8,
    _fake_linear,
)
define(
    "quantize_static(Tensor x, Tensor scale, Tensor zero_point, int qmin, int qmax, ScalarType dtype) -> Tensor",
    quantize,
    _fake_quantize,
)
define(
    "rows_embedding_int8(Tensor weight, Tensor weight_scale, Tensor indices) -> Tensor",
    embedding_int8,
    reference_embedding.fake_embedding_int8,
)
