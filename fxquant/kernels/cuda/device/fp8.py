# mypy: ignore-errors
"""Products of float8 numbers with all that follows them: scales, bias, activation, residual."""

import triton
import triton.language as tl

from fxquant.kernels.cuda.device.arithmetic import activate
from fxquant.kernels.cuda.device.gemm import block_of, finish, load_by


@triton.jit(do_not_specialize=["m"])
def fp8_gemm_kernel(
    x_ptr,  # (m, k) float8
    x_scale_ptr,  # (m,) or ()
    weight_ptr,  # (n, k) float8
    weight_scale_ptr,  # (n,) or ()
    bias_ptr,  # (n,) or None
    residual_ptr,  # (m, n) or None
    y_ptr,  # (m, n)
    m,
    n,
    k,
    BY_ROW: tl.constexpr,  # x has a scale for each row
    BY_COLUMN: tl.constexpr,  # the weight has one for each column of y
    ACTIVATION: tl.constexpr,
    WHOLE: tl.constexpr,  # BLOCK_K divides k
    FLOAT8: tl.constexpr,  # off where the kernel is interpreted, which multiplies the bits of float8 numbers
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Compute a block of BLOCK_M rows and BLOCK_N columns of y."""
    block_m, block_n = block_of(tl.program_id(0), m, n, BLOCK_M, BLOCK_N, GROUP)
    row, column = block_m * BLOCK_M + tl.arange(0, BLOCK_M), block_n * BLOCK_N + tl.arange(0, BLOCK_N)
    deep = tl.arange(0, BLOCK_K)
    # Rows and columns beyond the end are read from the start again, and not written.
    x_place = x_ptr + (row % m).to(tl.int64)[:, None] * k + deep[None, :]
    weight_place = weight_ptr + (column % n).to(tl.int64)[None, :] * k + deep[:, None]
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, k, BLOCK_K):
        inside = deep < k - start
        if WHOLE:
            x, weight = tl.load(x_place), tl.load(weight_place)
        else:
            x = tl.load(x_place, mask=inside[None, :], other=0.0)
            weight = tl.load(weight_place, mask=inside[:, None], other=0.0)
        if FLOAT8:
            # Hopper adds products of float8 with fewer bits than float32 has; each block's sum joins the others whole.
            sums = tl.dot(x, weight, sums, max_num_imprecise_acc=BLOCK_K)
        else:
            sums = tl.dot(x.to(tl.float32), weight.to(tl.float32), sums)
        x_place += BLOCK_K
        weight_place += BLOCK_K
    rows_inside, columns_inside = row < m, column < n
    x_scale = load_by(x_scale_ptr, row, rows_inside, BY_ROW)
    y = finish(sums, column, columns_inside, x_scale, x_scale, weight_scale_ptr, None, bias_ptr, BY_COLUMN)
    y = activate(y, ACTIVATION)
    place = row.to(tl.int64)[:, None] * n + column[None, :]
    inside = rows_inside[:, None] & columns_inside[None, :]
    if residual_ptr is not None:
        y += tl.load(residual_ptr + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + place, y.to(y_ptr.dtype.element_ty), mask=inside)
