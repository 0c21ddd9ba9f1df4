"""Product of two quantized activations: reference meaning."""

import torch
from torch import Tensor

from fxquant.kernels.integer import integer_matmul
from fxquant.kernels.library import define


def matmul_int8(
    a: Tensor, a_scale: Tensor, a_zero_point: Tensor, b: Tensor, b_scale: Tensor, b_zero_point: Tensor
) -> Tensor:
    """Return S_a·S_b·Σ_k (a − Z_a)·(b − Z_b) as float32.

    Shapes: a (…, M, K) and b (…, K, N), int8 or uint8, batch dimensions broadcast, give (…, M, N). Scales (float32)
    and zero points (int32) are (), or (…, M, 1) for a and (…, 1, N) for b.
    The sum is exact in int32 as Σ a·b − Z_a·Σ_k b − Z_b·Σ_k a + K·Z_a·Z_b.
    """
    columns = b.sum(dim=-2, keepdim=True, dtype=torch.int32)
    rows = a.sum(dim=-1, keepdim=True, dtype=torch.int32)
    sums = integer_matmul(a, b) - a_zero_point * columns - b_zero_point * (rows - a.shape[-1] * a_zero_point)
    return sums.to(torch.float32) * (a_scale * b_scale)


def fake_matmul_int8(
    a: Tensor, a_scale: Tensor, a_zero_point: Tensor, b: Tensor, b_scale: Tensor, b_zero_point: Tensor
) -> Tensor:
    """Return an empty tensor of the shape and dtype of `matmul_int8`."""
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])  # type: ignore[no-untyped-call]
    return a.new_empty((*batch, a.shape[-2], b.shape[-1]), dtype=torch.float32)


define(
    "matmul_int8(Tensor a, Tensor a_scale, Tensor a_zero_point, Tensor b, Tensor b_scale, Tensor b_zero_point)"
    " -> Tensor",
    matmul_int8,
    fake_matmul_int8,
)
