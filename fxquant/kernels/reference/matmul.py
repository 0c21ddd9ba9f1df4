"""Product of two quantized activations: reference meaning."""

import torch
from torch import Tensor

from fxquant.kernels.integer import integer_matmul
from fxquant.kernels.library import define
from fxquant.kernels.reference.epilogue import requantize


def matmul_int8(
    a: Tensor,
    a_scale: Tensor,
    a_zero_point: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero_point: Tensor,
    out_scale: Tensor | None,
    out_zero_point: Tensor | None,
    out_qmin: int,
    out_qmax: int,
    out_dtype: torch.dtype,
) -> Tensor:
    """Return S_a·S_b·Σ_k (a − Z_a)·(b − Z_b), quantized if `out_scale` is given, else as float32.

    Shapes: a (…, M, K) and b (…, K, N), int8 or uint8, batch dimensions broadcast, give (…, M, N). Scales (float32)
    and zero points (int32) are (), or (…, M, 1) for a and (…, 1, N) for b. The out_… arguments are those of
    `linear_int8`.
    The sum is exact in int32 as Σ a·b − Z_a·Σ_k b − Z_b·Σ_k a + K·Z_a·Z_b.
    """
    columns = b.sum(dim=-2, keepdim=True, dtype=torch.int32)
    rows = a.sum(dim=-1, keepdim=True, dtype=torch.int32)
    sums = integer_matmul(a, b) - a_zero_point * columns - b_zero_point * (rows - a.shape[-1] * a_zero_point)
    y = sums.to(torch.float32) * (a_scale * b_scale)
    return requantize(y, out_scale, out_zero_point, out_qmin, out_qmax, out_dtype)


def fake_matmul_int8(
    a: Tensor,
    a_scale: Tensor,
    a_zero_point: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero_point: Tensor,
    out_scale: Tensor | None,
    out_zero_point: Tensor | None,
    out_qmin: int,
    out_qmax: int,
    out_dtype: torch.dtype,
) -> Tensor:
    """Return an empty tensor of the shape and dtype of `matmul_int8`."""
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])  # type: ignore[no-untyped-call]
    dtype = torch.float32 if out_scale is None else out_dtype
    return a.new_empty((*batch, a.shape[-2], b.shape[-1]), dtype=dtype)


define(
    "matmul_int8(Tensor a, Tensor a_scale, Tensor a_zero_point, Tensor b, Tensor b_scale, Tensor b_zero_point, "
    "Tensor? out_scale, Tensor? out_zero_point, int out_qmin, int out_qmax, ScalarType out_dtype) -> Tensor",
    matmul_int8,
    fake_matmul_int8,
)
