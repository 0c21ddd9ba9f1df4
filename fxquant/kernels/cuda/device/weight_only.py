# mypy: ignore-errors
"""Triton kernels of float activations times weights of 8 and 4 bits, in the layout of tiles.py.

Weights are the left factor, y[n, m] = Σ_k w[n, k]·x[m, k]: their rows fill the rows of a tensor core's product, and a
few rows of activations its eight columns. Codes go from shared memory into the registers of the product as bytes, and
become floats there.

Constants of a launch: GROUP values share a scale, in SEGMENTS of WIDTH values; a row of a block of 64 has TILES of
WIDTH bytes, each with the values of PARTS segments. ALIGNED says that nothing is filled up: neither a group nor a row
ends within a segment, and every step has tiles for all its slices. PTX is off where the kernels are interpreted.
"""

import triton
import triton.language as tl

from fxquant.kernels.cuda.device import codes
from fxquant.kernels.cuda.device.arithmetic import activate

BLOCK = tl.constexpr(64)  # rows of a weight that are stored together
BF16_NIBBLES, F16_NIBBLES = tl.constexpr(codes.BF16_NIBBLES), tl.constexpr(codes.F16_NIBBLES)
BF16_BYTES, F16_BYTES = tl.constexpr(codes.BF16_BYTES), tl.constexpr(codes.F16_BYTES)
NIBBLES_IN, BYTES_IN = tl.constexpr("=&r,=&r,=&r,=&r,r,r,r,r,r"), tl.constexpr("=&r,=&r,r,r,r")


@triton.constexpr_function
def unit(dtype):
    """Return what one step of a code becomes in `dtype`."""
    return {"bf16": codes.BF16_UNIT, "fp16": codes.F16_UNIT}.get(dtype.name, 1.0)


@triton.jit
def from_nibbles(w, low, high, PTX: tl.constexpr):
    """Return u·unit + low of the low nibbles u of bytes, and u·unit + high of the high ones, in the dtype of both."""
    if PTX and low.dtype == tl.bfloat16:
        return tl.inline_asm_elementwise(
            BF16_NIBBLES, NIBBLES_IN, [w, low, high], dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=4
        )
    elif PTX and low.dtype == tl.float16:
        return tl.inline_asm_elementwise(
            F16_NIBBLES, NIBBLES_IN, [w, low, high], dtype=(tl.float16, tl.float16), is_pure=True, pack=4
        )
    else:
        first = (w & 15).to(tl.float32) * unit(low.dtype) + low.to(tl.float32)
        second = (w >> 4).to(tl.float32) * unit(low.dtype) + high.to(tl.float32)
        return first.to(low.dtype), second.to(low.dtype)


@triton.jit
def from_bytes(w, offset, PTX: tl.constexpr):
    """Return u·unit + offset of bytes u, in the dtype of `offset`."""
    if PTX and offset.dtype == tl.bfloat16:
        return tl.inline_asm_elementwise(BF16_BYTES, BYTES_IN, [w, offset], dtype=tl.bfloat16, is_pure=True, pack=4)
    elif PTX and offset.dtype == tl.float16:
        return tl.inline_asm_elementwise(F16_BYTES, BYTES_IN, [w, offset], dtype=tl.float16, is_pure=True, pack=4)
    else:
        return (w.to(tl.float32) * unit(offset.dtype) + offset.to(tl.float32)).to(offset.dtype)


@triton.jit
def product(w, x, y, PTX: tl.constexpr):
    """Return y + w·x; the interpreter multiplies the bits of bfloat16 numbers, so it is given float32 ones."""
    if PTX:
        return tl.dot(w, x, y, input_precision="tf32x3")
    else:
        return tl.dot(w.to(tl.float32), x.to(tl.float32), y)


@triton.jit
def finish(y, n, m, bias_ptr, residual_ptr, y_ptr, rows, columns, ACTIVATION: tl.constexpr, ACTIVATED: tl.constexpr):
    """Store activation(y + bias) + residual for y [n, m]; from column ACTIVATED on there is no activation."""
    inside = (n < columns)[:, None] & (m < rows)[None, :]
    if bias_ptr is not None:
        y += tl.load(bias_ptr + n, mask=n < columns, other=0.0).to(tl.float32)[:, None]
    y = tl.where((n < ACTIVATED)[:, None], activate(y, ACTIVATION), y)
    place = m.to(tl.int64)[None, :] * columns + n[:, None]
    if residual_ptr is not None:
        y += tl.load(residual_ptr + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + place, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def places(q, i, depth, GROUP: tl.constexpr, SEGMENTS: tl.constexpr, WIDTH: tl.constexpr, ALIGNED: tl.constexpr):
    """Return where along K the values `i` of segments `q` are, and whether there is such a value."""
    if ALIGNED:
        k = q * WIDTH + i
        return k, k >= 0
    else:
        within = (q % SEGMENTS) * WIDTH + i
        k = (q // SEGMENTS) * GROUP + within
        return k, (within < GROUP) & (k < depth)


@triton.jit
def parameters(scale_ptr, zero_ptr, place, there, MIDDLE: tl.constexpr, dtype: tl.constexpr):
    """Return the scales at `place` over the unit of `dtype`, and the offsets of codes in it."""
    scale = tl.load(scale_ptr + place, mask=there, other=0.0) * (1.0 / unit(dtype))
    if zero_ptr is None:
        return scale, tl.full(place.shape, -MIDDLE * unit(dtype), dtype)
    else:
        zero = tl.load(zero_ptr + place, mask=there, other=0).to(tl.float32)
        return scale, ((-MIDDLE - zero) * unit(dtype)).to(dtype)


@triton.jit
def few_rows(
    x_ptr, w_ptr, scale_ptr, zero_ptr, bias_ptr, residual_ptr, y_ptr, rows, columns, depth, groups,
    GROUP: tl.constexpr, SEGMENTS: tl.constexpr, WIDTH: tl.constexpr, TILES: tl.constexpr, PARTS: tl.constexpr,
    ALIGNED: tl.constexpr, ACTIVATION: tl.constexpr, ACTIVATED: tl.constexpr, PTX: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, SLICES: tl.constexpr,
):  # fmt: skip
    """One to sixteen rows of x, bound by memory: a program reads COLUMNS rows of the weight from end to end.

    Its warps share the depth in SLICES, next to each other in memory, and add their sums at the end. Scales are applied
    to the sums of a segment, so products are exact for 16-bit activations.
    """
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    middle: tl.constexpr = 8 if PARTS == 2 else 128
    block = tl.program_id(0) // (BLOCK // COLUMNS)
    c = (tl.program_id(0) % (BLOCK // COLUMNS)) * COLUMNS + tl.arange(0, COLUMNS)
    s, i, m = tl.arange(0, SLICES), tl.arange(0, WIDTH), tl.arange(0, ROWS)
    w_ptr += block.to(tl.int64) * (TILES * BLOCK * WIDTH)
    row = m.to(tl.int64)[None, None, :] * depth
    live = (m < rows)[None, None, :]
    none = tl.zeros((SLICES, COLUMNS, ROWS), tl.float32)
    total = none
    for first in range(0, TILES, SLICES):
        tile = first + s
        there = ALIGNED | (tile < TILES)
        place = tile[:, None, None] * (BLOCK * WIDTH) + c[None, :, None] * WIDTH + i[None, None, :]
        w = tl.load(w_ptr + place, mask=there[:, None, None], other=0)
        q = tile * PARTS
        k, valid = places(q[:, None], i[None, :], depth, GROUP, SEGMENTS, WIDTH, ALIGNED)
        x = tl.load(x_ptr + k[:, :, None] + row, mask=valid[:, :, None] & live, other=0.0)
        group = (block * groups + q // SEGMENTS)[:, None] * BLOCK + c[None, :]
        there = ALIGNED | (q // SEGMENTS < groups)
        scale, offset = parameters(scale_ptr, zero_ptr, group, there[:, None], middle, dtype)
        offset = tl.broadcast_to(offset[:, :, None], (SLICES, COLUMNS, WIDTH))
        if PARTS == 1:
            part = product(from_bytes(w, offset, PTX), x, none, PTX)
            total += part * scale[:, :, None]
        else:
            q += 1
            k, valid = places(q[:, None], i[None, :], depth, GROUP, SEGMENTS, WIDTH, ALIGNED)
            more = tl.load(x_ptr + k[:, :, None] + row, mask=valid[:, :, None] & live, other=0.0)
            if SEGMENTS % 2 == 0:
                low, high = from_nibbles(w, offset, offset, PTX)
                part = product(low, x, none, PTX)
                total += product(high, more, part, PTX) * scale[:, :, None]
            else:
                group = (block * groups + q // SEGMENTS)[:, None] * BLOCK + c[None, :]
                there = ALIGNED | (q // SEGMENTS < groups)
                next_scale, other = parameters(scale_ptr, zero_ptr, group, there[:, None], middle, dtype)
                other = tl.broadcast_to(other[:, :, None], (SLICES, COLUMNS, WIDTH))
                low, high = from_nibbles(w, offset, other, PTX)
                total += product(low, x, none, PTX) * scale[:, :, None]
                total += product(high, more, none, PTX) * next_scale[:, :, None]
    y = tl.sum(total, 0)
    finish(y, block * BLOCK + c, m, bias_ptr, residual_ptr, y_ptr, rows, columns, ACTIVATION, ACTIVATED)


@triton.jit
def many_rows(
    x_ptr, w_ptr, scale_ptr, zero_ptr, bias_ptr, residual_ptr, y_ptr, rows, columns, depth, groups,
    GROUP: tl.constexpr, SEGMENTS: tl.constexpr, WIDTH: tl.constexpr, TILES: tl.constexpr, PARTS: tl.constexpr,
    ALIGNED: tl.constexpr, ACTIVATION: tl.constexpr, ACTIVATED: tl.constexpr, PTX: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, SLICES: tl.constexpr,
):  # fmt: skip
    """Any number of rows of x, bound by arithmetic: weights become S·(q − Z) in the dtype of x, rounded once."""
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    middle: tl.constexpr = 8 if PARTS == 2 else 128
    m = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    n = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    block, c, i = n // BLOCK, n % BLOCK, tl.arange(0, WIDTH)
    stored = block < tl.cdiv(columns, BLOCK)
    w_ptr += block.to(tl.int64)[:, None] * (TILES * BLOCK * WIDTH) + c[:, None] * WIDTH + i[None, :]
    row = m.to(tl.int64)[None, :] * depth
    live = (m < rows)[None, :]
    y = tl.zeros((COLUMNS, ROWS), tl.float32)
    for tile in range(0, TILES):
        w = tl.load(w_ptr + tile * (BLOCK * WIDTH), mask=stored[:, None], other=0)
        q = tile * PARTS
        k, valid = places(q, i, depth, GROUP, SEGMENTS, WIDTH, ALIGNED)
        x = tl.load(x_ptr + k[:, None] + row, mask=valid[:, None] & live, other=0.0)
        group = (block * groups + q // SEGMENTS) * BLOCK + c
        there = stored & (ALIGNED | (q // SEGMENTS < groups))
        scale, offset = parameters(scale_ptr, zero_ptr, group, there, middle, dtype)
        offset = tl.broadcast_to(offset[:, None], (COLUMNS, WIDTH))
        if PARTS == 1:
            wide = from_bytes(w, offset, PTX).to(tl.float32) * scale[:, None]
            y = product(wide.to(dtype), x, y, PTX)
        else:
            q += 1
            k, valid = places(q, i, depth, GROUP, SEGMENTS, WIDTH, ALIGNED)
            more = tl.load(x_ptr + k[:, None] + row, mask=valid[:, None] & live, other=0.0)
            next_scale, other = scale, offset
            if SEGMENTS % 2:
                group = (block * groups + q // SEGMENTS) * BLOCK + c
                there = stored & (ALIGNED | (q // SEGMENTS < groups))
                next_scale, other = parameters(scale_ptr, zero_ptr, group, there, middle, dtype)
                other = tl.broadcast_to(other[:, None], (COLUMNS, WIDTH))
            low, high = from_nibbles(w, offset, other, PTX)
            wide = (low.to(tl.float32) * scale[:, None]).to(dtype)
            y = product(wide, x, y, PTX)
            wide = (high.to(tl.float32) * next_scale[:, None]).to(dtype)
            y = product(wide, more, y, PTX)
    finish(y, n, m, bias_ptr, residual_ptr, y_ptr, rows, columns, ACTIVATION, ACTIVATED)
