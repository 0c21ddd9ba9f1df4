# mypy: ignore-errors
"""Rows of activations: normalized or not, then quantized, each row read once and held in registers."""

import triton
import triton.language as tl

from fxquant.kernels.cuda.device.arithmetic import row_qparams, to_format


@triton.jit
def normalize(x, inside, width, eps, NORM: tl.constexpr):
    """Return rows of float32 x less their mean (layer) over their root mean square; columns beyond `inside` are 0."""
    total = tl.sum(x, axis=1)
    values = tl.zeros_like(total) + width
    if NORM == "layer":
        x = tl.where(inside, x - tl.math.div_rn(total, values)[:, None], 0.0)
    squares = tl.math.div_rn(tl.sum(x * x, axis=1), values)
    return x * tl.math.div_rn(tl.zeros_like(squares) + 1.0, tl.math.sqrt_rn(squares + eps))[:, None]


@triton.jit
def range_of(x, inside):
    """Return the least and the greatest value of each row and zero; NaN where the row has one."""
    nothing = tl.where(inside, x, 0.0)
    broken = tl.max((nothing != nothing).to(tl.int32), axis=1) != 0
    low, high = tl.min(nothing, axis=1), tl.max(nothing, axis=1)
    return tl.where(broken, float("nan"), tl.minimum(low, 0.0)), tl.where(broken, float("nan"), tl.maximum(high, 0.0))


@triton.jit(do_not_specialize=["rows"])
def rows_kernel(
    x_ptr,  # (rows, width)
    weight_ptr,  # (width,) or None, of the norm
    bias_ptr,
    kept_ptr,  # (rows, width) or None: the normalized x
    q_ptr,  # (rows, width)
    scale_ptr,  # (rows,), written; static: (), read
    zero_point_ptr,
    rows,
    width,
    eps,
    divisor,
    middle,
    qmin,
    qmax,
    smallest,
    NORM: tl.constexpr,  # "none", "layer" or "rms"
    STATIC: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Quantize ROWS rows, which COLUMNS, a power of two, has room for."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < width)[None, :]
    place = row[:, None] * width + column[None, :]
    x = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32)
    if NORM != "none":
        x = normalize(x, inside, width, eps, NORM)
        if weight_ptr is not None:
            x *= tl.load(weight_ptr + column, mask=column < width, other=0.0).to(tl.float32)[None, :]
        if bias_ptr is not None:
            x += tl.load(bias_ptr + column, mask=column < width, other=0.0).to(tl.float32)[None, :]
        # What is quantized is what a norm of this dtype returns.
        narrow = x.to(x_ptr.dtype.element_ty)
        x = narrow.to(tl.float32)
        if kept_ptr is not None:
            tl.store(kept_ptr + place, narrow, mask=inside)
    if STATIC:
        scale, zero_point = tl.load(scale_ptr), tl.load(zero_point_ptr).to(tl.float32)
        q = to_format(x, tl.zeros_like(x) + scale, zero_point, qmin, qmax, q_ptr.dtype.element_ty)
    else:
        low, high = range_of(x, inside)
        scale, zero_point = row_qparams(low, high, divisor, middle, qmin, qmax, smallest, SYMMETRIC)
        tl.store(scale_ptr + row, scale, mask=row < rows)
        tl.store(zero_point_ptr + row, zero_point.to(tl.int32), mask=row < rows)
        scales = tl.zeros_like(x) + scale[:, None]
        q = to_format(x, scales, zero_point[:, None], qmin, qmax, q_ptr.dtype.element_ty)
    tl.store(q_ptr + place, q, mask=inside)
