# mypy: ignore-errors
"""Attention with an online softmax: products of bfloat16, sums and exponentials in float32.

Source of the algorithm: Dao et al. 2022, "FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness".
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def sequence_of(program, offsets_ptr, sequences, BLOCK_M: tl.constexpr, SEQUENCES: tl.constexpr):
    """Return which sequence a program works on, the block of its queries, and where the sequence begins and ends."""
    index = tl.arange(0, SEQUENCES)
    inside = index < sequences
    begins = tl.load(offsets_ptr + index, mask=inside, other=0)
    ends = tl.load(offsets_ptr + index + 1, mask=inside, other=0)
    blocks = tl.where(inside, (ends - begins + BLOCK_M - 1) // BLOCK_M, 0)
    before = tl.sum(tl.where(tl.cumsum(blocks, axis=0) <= program, blocks, 0), axis=0)
    sequence = tl.sum((tl.cumsum(blocks, axis=0) <= program).to(tl.int32), axis=0)
    own = index == sequence
    return program - before, tl.sum(tl.where(own, begins, 0), axis=0), tl.sum(tl.where(own, ends, 0), axis=0)


@triton.jit
def load_rows(ptr, position, inside, stride, feature, features, FACTOR: tl.constexpr):
    """Return rows of features rounded to bfloat16, zeros where they are not `inside`."""
    place = ptr + position.to(tl.int64)[:, None] * stride + feature[None, :]
    rows = tl.load(place, mask=inside[:, None] & (feature < features)[None, :], other=0.0)
    return rows.to(tl.bfloat16).to(FACTOR)


# Sizes that change from batch to batch make no new kernels.
@triton.jit(do_not_specialize=["queries", "keys", "sequences", "q_batch", "k_batch", "v_batch"])
def attention_kernel(
    q_ptr,  # (B, Sq, heads, features), features apart by 1
    k_ptr,  # (B, Sk, kv_heads, features)
    v_ptr,
    mask_ptr,  # (B, Sk) bytes, not 0 where a key takes part, or None
    offsets_ptr,  # (sequences + 1,), or None: then each batch entry is a sequence
    y_ptr,  # (B, Sq, heads, features), contiguous
    queries,
    keys,
    sequences,
    heads,
    group,  # query heads to a key head
    features,
    scale,
    q_batch,  # strides
    q_position,
    q_head,
    k_batch,
    k_position,
    k_head,
    v_batch,
    v_position,
    v_head,
    FACTOR: tl.constexpr,  # the type that holds bfloat16 numbers in a product
    CAUSAL: tl.constexpr,
    SEQUENCES: tl.constexpr,  # room for `sequences`, a power of two
    FEATURES: tl.constexpr,  # room for `features`
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Compute BLOCK_M queries of one head of one sequence."""
    head, blocks = tl.program_id(1).to(tl.int64), tl.cdiv(queries, BLOCK_M)
    batch = tl.zeros_like(head)
    if offsets_ptr is not None:
        block, first, last = sequence_of(tl.program_id(0), offsets_ptr, sequences, BLOCK_M, SEQUENCES)
        first_key, last_key = first, last
    else:
        batch += tl.program_id(0) // blocks
        block, first, last, first_key, last_key = tl.program_id(0) % blocks, 0, queries, 0, keys
    query = first + block * BLOCK_M + tl.arange(0, BLOCK_M)
    asked = query < last
    feature = tl.arange(0, FEATURES)
    k_ptr += batch * k_batch + head // group * k_head
    v_ptr += batch * v_batch + head // group * v_head
    q = load_rows(q_ptr + batch * q_batch + head * q_head, query, asked, q_position, feature, features, FACTOR)
    greatest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    y = tl.zeros((BLOCK_M, FEATURES), tl.float32)
    end = last_key
    if CAUSAL:
        end = tl.minimum(last_key, first_key + (block + 1) * BLOCK_M)
    for start in range(first_key, end, BLOCK_N):
        key = start + tl.arange(0, BLOCK_N)
        there = key < end
        k = load_rows(k_ptr, key, there, k_position, feature, features, FACTOR)
        scores = tl.dot(q, tl.trans(k)) * (scale * LOG2_E)
        seen = there[None, :] & asked[:, None]
        if mask_ptr is not None:
            seen &= (tl.load(mask_ptr + batch * keys + key, mask=there, other=0) != 0)[None, :]
        if CAUSAL:
            seen &= (key - first_key)[None, :] <= (query - first)[:, None]
        scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(greatest, tl.max(scores, axis=1))
        # Where no key was seen yet, −∞ − −∞ would be NaN.
        base = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(scores - base[:, None])
        rescale = tl.exp2(greatest - base)
        total = total * rescale + tl.sum(weights, axis=1)
        v = load_rows(v_ptr, key, there, v_position, feature, features, FACTOR)
        y = tl.dot(weights.to(tl.bfloat16).to(FACTOR), v, y * rescale[:, None])
        greatest = higher
    y = y / tl.where(total == 0.0, 1.0, total)[:, None]
    place = ((batch * queries + query.to(tl.int64)) * heads + head)[:, None] * features + feature[None, :]
    tl.store(y_ptr + place, y.to(y_ptr.dtype.element_ty), mask=asked[:, None] & (feature < features)[None, :])
