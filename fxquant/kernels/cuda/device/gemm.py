# mypy: ignore-errors
"""Products of 8-bit integers with all that follows them: zero point, scales, bias, activation, gate, residual.

sums = Σ_k x·w, in int32; y = activation(fma(sums − Z·Σ_k w, S_x·S_w, bias)) + residual, which may be quantized.
"""

import triton
import triton.language as tl

from fxquant.kernels.cuda.device.arithmetic import activate, to_integers


@triton.jit
def block_of(program, m, n, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr):
    """Return row and column of a program's block: GROUP blocks of rows share the weights that the cache holds."""
    down, across = tl.cdiv(m, BLOCK_M), tl.cdiv(n, BLOCK_N)
    group = program // (GROUP * across)
    height = tl.minimum(down - group * GROUP, GROUP)
    inside = program % (GROUP * across)
    return group * GROUP + inside % height, inside // height


@triton.jit
def load_block(place, inside, WHOLE: tl.constexpr):
    """Return a block of bytes, with zeros where it is not `inside`, unless all of it is."""
    if WHOLE:
        block = tl.load(place)
    else:
        block = tl.load(place, mask=inside, other=0)
    return block


@triton.jit
def products(
    x_place,
    weight_place,
    up_place,
    k,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WHOLE: tl.constexpr,
    UNSIGNED: tl.constexpr,
    GATED: tl.constexpr,
):
    """Return Σ_k x·w of a block as int32, and of the up's block too where there is a gate."""
    deep = tl.arange(0, BLOCK_K)
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    up = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    for start in range(0, k, BLOCK_K):
        inside = deep < k - start
        x = load_block(x_place, inside[None, :], WHOLE)
        if UNSIGNED:
            # 128 less: the highest bit turns.
            x = (x ^ 128).to(tl.int8, bitcast=True)
        sums = tl.dot(x, load_block(weight_place, inside[:, None], WHOLE), sums, out_dtype=tl.int32)
        if GATED:
            up = tl.dot(x, load_block(up_place, inside[:, None], WHOLE), up, out_dtype=tl.int32)
            up_place += BLOCK_K
        x_place += BLOCK_K
        weight_place += BLOCK_K
    return sums, up


@triton.jit
def load_by(ptr, index, inside, EACH: tl.constexpr):
    """Return one value for each index, or the one value that serves all."""
    if EACH:
        value = tl.load(ptr + index, mask=inside, other=0)
    else:
        value = tl.zeros(index.shape, ptr.dtype.element_ty) + tl.load(ptr)
    return value


@triton.jit
def finish(sums, column, inside, zero_point, x_scale, scale_ptr, sum_ptr, bias_ptr, BY_COLUMN: tl.constexpr):
    """Return fma(sums − Z·Σ w, S_x·S_w, bias) as float32, for `sums` (rows, columns), Z and S_x (rows,)."""
    if sum_ptr is not None:
        sums -= zero_point[:, None] * tl.load(sum_ptr + column, mask=inside, other=0)[None, :]
    bias = tl.zeros(sums.shape, tl.float32)
    if bias_ptr is not None:
        given = tl.load(bias_ptr + column, mask=inside, other=0)[None, :]
        if bias_ptr.dtype.element_ty == tl.int32:
            sums += given
        else:
            bias += given.to(tl.float32)
    scale = x_scale[:, None] * load_by(scale_ptr, column, inside, BY_COLUMN)[None, :]
    return tl.fma(sums.to(tl.float32), scale, bias)


@triton.jit(do_not_specialize=["m", "m_class"])
def int8_gemm_kernel(
    x_ptr,  # (m, k) int8 or uint8
    x_scale_ptr,  # (m,) or ()
    x_zero_point_ptr,  # the same, or None for 0
    weight_ptr,  # (n, stride) int8; gated: (2·n, stride), the gate's rows first
    weight_scale_ptr,  # one a row of the weight, or ()
    weight_sum_ptr,  # one a row of the weight, or None
    bias_ptr,  # one a row of the weight, float32 or int32, or None
    residual_ptr,  # (m, n) or None
    y_ptr,  # (m, n)
    out_scale_ptr,  # (), or None where y is no integer
    out_zero_point_ptr,
    m,
    n,
    k,
    weight_stride,
    qmin,
    qmax,
    m_class,  # what is measured apart: m, rounded up
    BY_ROW: tl.constexpr,  # x has a scale for each row
    BY_COLUMN: tl.constexpr,  # the weight has one for each column of y
    UNSIGNED: tl.constexpr,  # x is uint8
    GATED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    WHOLE: tl.constexpr,  # BLOCK_K divides k
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
    weight_place = weight_ptr + (column % n).to(tl.int64)[None, :] * weight_stride + deep[:, None]
    up_place = weight_ptr + (column % n + n).to(tl.int64)[None, :] * weight_stride + deep[:, None]
    sums, up = products(x_place, weight_place, up_place, k, BLOCK_M, BLOCK_N, BLOCK_K, WHOLE, UNSIGNED, GATED)
    rows_inside, columns_inside = row < m, column < n
    x_scale = load_by(x_scale_ptr, row, rows_inside, BY_ROW)
    zero_point = tl.zeros(row.shape, tl.int32)
    if x_zero_point_ptr is not None:
        zero_point = load_by(x_zero_point_ptr, row, rows_inside, BY_ROW)
    if UNSIGNED:
        zero_point -= 128
    # The other operands have one value for each row of the weight; the up's rows are n further on.
    y = finish(sums, column, columns_inside, zero_point, x_scale, weight_scale_ptr, weight_sum_ptr, bias_ptr, BY_COLUMN)
    y = activate(y, ACTIVATION)
    if GATED:
        beyond = column + n
        y *= finish(
            up, beyond, columns_inside, zero_point, x_scale, weight_scale_ptr, weight_sum_ptr, bias_ptr, BY_COLUMN
        )
    place = row.to(tl.int64)[:, None] * n + column[None, :]
    inside = rows_inside[:, None] & columns_inside[None, :]
    if residual_ptr is not None:
        y += tl.load(residual_ptr + place, mask=inside, other=0.0).to(tl.float32)
    if ACTIVATION == "add_relu":
        y = activate(y, "relu")
    if out_scale_ptr is not None:
        out_zero_point = tl.load(out_zero_point_ptr).to(tl.float32)
        y = to_integers(y, tl.zeros_like(y) + tl.load(out_scale_ptr), out_zero_point, qmin, qmax)
    tl.store(y_ptr + place, y.to(y_ptr.dtype.element_ty), mask=inside)
