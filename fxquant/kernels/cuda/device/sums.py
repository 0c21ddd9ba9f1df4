# mypy: ignore-errors
"""What follows products that a library computed: the same arithmetic as behind our own (gemm.py, fp8.py)."""

import triton
import triton.language as tl

from fxquant.kernels.cuda.device.arithmetic import activate, to_integers
from fxquant.kernels.cuda.device.gemm import finish, load_by


@triton.jit
def finish_sums_kernel(
    sums_ptr,  # (rows, stride) int32 or float32
    x_scale_ptr,  # (m,) or ()
    x_zero_point_ptr,  # the same, or None for 0
    weight_scale_ptr,  # (n,) or ()
    weight_sum_ptr,  # (n,) or None
    bias_ptr,  # (n,), float32 or int32, or None
    residual_ptr,  # (m, n) or None
    y_ptr,  # (m, n)
    out_scale_ptr,  # (), or None where y is no integer
    out_zero_point_ptr,
    m,
    n,
    stride,
    qmin,
    qmax,
    BY_ROW: tl.constexpr,  # x has a scale for each row
    BY_COLUMN: tl.constexpr,  # the weight has one for each column of y
    UNSIGNED: tl.constexpr,  # x was uint8, and was multiplied 128 less
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Compute a block of BLOCK_M rows and BLOCK_N columns of y from the sums."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows_inside, columns_inside = row < m, column < n
    inside = rows_inside[:, None] & columns_inside[None, :]
    sums = tl.load(sums_ptr + row.to(tl.int64)[:, None] * stride + column[None, :], mask=inside, other=0)
    x_scale = load_by(x_scale_ptr, row, rows_inside, BY_ROW)
    zero_point = tl.zeros(row.shape, tl.int32)
    if x_zero_point_ptr is not None:
        zero_point = load_by(x_zero_point_ptr, row, rows_inside, BY_ROW)
    if UNSIGNED:
        zero_point -= 128
    y = finish(sums, column, columns_inside, zero_point, x_scale, weight_scale_ptr, weight_sum_ptr, bias_ptr, BY_COLUMN)
    y = activate(y, ACTIVATION)
    place = row.to(tl.int64)[:, None] * n + column[None, :]
    if residual_ptr is not None:
        y += tl.load(residual_ptr + place, mask=inside, other=0.0).to(tl.float32)
    if ACTIVATION == "add_relu":
        y = activate(y, "relu")
    if out_scale_ptr is not None:
        out_zero_point = tl.load(out_zero_point_ptr).to(tl.float32)
        y = to_integers(y, tl.zeros_like(y) + tl.load(out_scale_ptr), out_zero_point, qmin, qmax)
    tl.store(y_ptr + place, y.to(y_ptr.dtype.element_ty), mask=inside)
