"""Attention on each instruction set against softmax in float64; what it may depend on, and what it refuses."""

import math
from contextlib import nullcontext
from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from instruction_sets import using
from torch.nn import functional

import fxquant.kernels
from fxquant.kernels.cpu import attention, native
from fxquant.kernels.cpu.isa import NATIVE

assert fxquant.kernels  # defines the ops
op = torch.ops.fxquant.attention
BFLOAT16 = "avx512_bf16"
examples = settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
lengths = st.sampled_from([0, 1, 2, 5, 8, 15, 16, 17, 31, 33, 48, 65])
heads_of = st.sampled_from([(1, 1), (2, 2), (4, 2), (6, 1)])
features = st.sampled_from([1, 3, 8, 15, 16, 17, 32, 40, 48, 64])
MASKS = ["none", "padding", "bool", "float", "bool over heads", "one row for all", "transposed"]


@pytest.fixture(params=[*NATIVE, "python"])
def each(request):
    """Run the test on each instruction set, and on the implementation in Python."""
    if request.param == "python":
        with using("avx2") if native.available() else nullcontext():
            yield attention.attention
    else:
        with using(request.param):
            yield op


@pytest.fixture(autouse=True)
def two_threads():
    yield
    torch.set_num_threads(2)


def draw(*shape, seed=0, scale=1.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def mask_of(kind, batch, heads, queries, keys, seed=0):
    generator = torch.Generator().manual_seed(seed)
    whole = torch.rand(batch, heads, queries, keys, generator=generator)
    masks = {
        "none": None,
        "padding": torch.rand(batch, keys, generator=generator) > 0.4,
        "bool": whole[:, :1] > 0.4,
        "float": whole * 4 - 2,
        "bool over heads": whole[:1] > 0.4,
        "one row for all": (whole[:, :1, :1] > 0.4).expand(-1, -1, queries, -1),
        "transposed": (whole.transpose(2, 3).contiguous().transpose(2, 3) > 0.4),
    }
    return masks[kind]


def exact(q, k, v, mask, scale, causal):
    """Softmax attention of (B, S, heads, D) in float64, of bfloat16 numbers where the products take these."""
    if native.available() and native.use_isa("") == BFLOAT16:
        q, k, v, scale = q.bfloat16(), (k * scale).bfloat16(), v.bfloat16(), 1.0
    group = q.shape[2] // k.shape[2]
    q, k, v = (x.double().transpose(1, 2) for x in (q, k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)))
    scores = q @ k.transpose(2, 3) * scale
    keep = torch.ones(scores.shape, dtype=torch.bool)
    if mask is not None and mask.dtype is torch.bool:
        keep &= mask[:, None, None] if mask.ndim == 2 else mask
    elif mask is not None:
        scores = scores + mask
    if causal:
        keep &= torch.arange(scores.shape[3]) <= torch.arange(scores.shape[2])[:, None]
    weights = scores.masked_fill(~keep, -math.inf).softmax(-1).nan_to_num(0.0)
    return (weights @ v).transpose(1, 2).flatten(2)


def operands(batch, queries, keys, heads, kv_heads, width, seed=0):
    q = draw(batch, queries, heads, width, seed=seed)
    return q, draw(batch, keys, kv_heads, width, seed=seed + 1), draw(batch, keys, kv_heads, width, seed=seed + 2)


def assert_exact(y, expected):
    """Compare with `exact`; its weights are not rounded to bfloat16, of which values are 4 and less here."""
    slack = 2e-6 if not native.available() or native.use_isa("") != BFLOAT16 else 4 * 2**-8
    assert y.shape == expected.shape
    assert y.dtype == torch.float32
    assert y.is_contiguous()
    torch.testing.assert_close(y.double(), expected, rtol=2e-6, atol=slack)


@examples
@given(
    st.integers(0, 3), lengths, lengths, heads_of, features, st.sampled_from(MASKS), st.booleans(), st.integers(0, 99)
)
def test_equals_softmax_in_float64(each, batch, queries, keys, heads, width, kind, causal, seed):
    q, k, v = operands(batch, queries, keys, *heads, width, seed)
    mask = mask_of(kind, batch, heads[0], queries, keys, seed)
    flat = (q.flatten(2), k.flatten(2), v.flatten(2))
    y = each(*flat, mask, None, *heads, width**-0.5, causal)
    assert_exact(y, exact(q, k, v, mask, width**-0.5, causal))


@examples
@given(
    st.integers(1, 3), lengths, heads_of, st.sampled_from([8, 17]), st.integers(-2, 9),
    st.sampled_from([None, 1, 5, 19, 70]), st.booleans(), st.integers(0, 99),
)  # fmt: skip
def test_windows(each, batch, length, heads, width, diagonal, window, padded, seed):
    q, k, v = operands(batch, length, length, *heads, width, seed)
    keep = mask_of("padding", batch, heads[0], length, length, seed) if padded else None
    ahead = torch.arange(length) - torch.arange(length)[:, None] - diagonal
    seen = (ahead <= 0) & (ahead > -(window or 999))
    mask = seen[None, None] if keep is None else seen & keep[:, None, None]
    y = each(q, k, v, keep, None, *heads, 0.3, True, diagonal, window)
    assert_exact(y, exact(q, k, v, mask, 0.3, False))


@examples
@given(st.integers(1, 3), lengths, heads_of, features, st.booleans(), st.integers(0, 99))
def test_merged_columns_equal_three_tensors(each, batch, length, heads, width, causal, seed):
    q, k, v = (x.flatten(2) for x in operands(batch, length, length, *heads, width, seed))
    rest = (None, None, *heads, 0.3, causal)
    merged = each(torch.cat([q, k, v], 2), None, None, *rest)
    torch.testing.assert_close(merged, each(q, k, v, *rest), rtol=2e-6, atol=2e-6)


LAYOUTS = {
    "heads before positions": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "positions before batches": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "features apart": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "columns of more": lambda x: functional.pad(x, (3, 5))[..., 3:-5],
    "one for all rows": lambda x: x[:1].expand(x.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(each, layout):
    q, k, v = (LAYOUTS[layout](x) for x in operands(3, 9, 21, 4, 2, 24))
    expected = exact(q, k, v, None, 0.2, False)
    assert_exact(each(q, k, v, None, None, 4, 2, 0.2, False), expected)


def test_strided_columns(each):
    q, k, v = (x.flatten(2) for x in operands(2, 7, 7, 2, 2, 16))
    wide = torch.cat([k, q, v], 2)
    y = each(wide[..., 32:64], wide[..., :32], wide[..., 64:], None, None, 2, 2, 0.25, False)
    torch.testing.assert_close(y, each(q, k, v, None, None, 2, 2, 0.25, False), rtol=2e-6, atol=2e-6)


@examples
@given(st.lists(st.sampled_from([0, 1, 3, 16, 17, 40]), min_size=1, max_size=5), heads_of, st.booleans(), st.booleans())
def test_offsets_keep_sequences_apart(each, sizes, heads, causal, wide):
    q, k, v = operands(1, sum(sizes), sum(sizes), *heads, 16)
    offsets = torch.tensor([0, *torch.tensor(sizes).cumsum(0)], dtype=torch.int64 if wide else torch.int32)
    y = each(q, k, v, None, offsets, *heads, 0.25, causal)
    apart = [exact(*(x[:, a:b] for x in (q, k, v)), None, 0.25, causal) for a, b in pairwise(offsets)]
    assert_exact(y, torch.cat(apart, 1))


class TestDependsOnLiveKeysOnly:
    """Bit for bit; the implementation in Python is left to torch and holds it to rounding only."""

    @pytest.fixture(params=NATIVE)
    def each(self, request):
        with using(request.param):
            yield op

    @examples
    @given(
        st.lists(st.integers(1, 40), min_size=1, max_size=4),
        st.integers(0, 20),
        heads_of,
        st.sampled_from([8, 32, 33]),
        st.booleans(),
        st.sampled_from(["left", "right", "anywhere"]),
        st.sampled_from([None, (0, 4), (3, 7), (20, 41)]),
    )
    def test_padded_equals_packed(self, each, sizes, more, heads, width, causal, side, window):
        length = max(sizes) + more
        generator = torch.Generator().manual_seed(length)
        keep = torch.zeros(len(sizes), length, dtype=torch.bool)
        for row, size in zip(keep, sizes, strict=True):
            places = torch.randperm(length, generator=generator)[:size]
            row[{"left": slice(length - size, None), "right": slice(size), "anywhere": places}[side]] = True
        padded = operands(len(sizes), length, length, *heads, width)
        packed = [x[keep][None] for x in padded]
        offsets = torch.tensor([0, *torch.tensor(sizes).cumsum(0)])
        order = (causal,) if window is None else (True, *window)
        places = () if window is None else (keep.flatten().nonzero().flatten(),)
        y = each(*padded, keep, None, *heads, 0.2, *order)
        assert torch.equal(y[keep][None], each(*packed, None, offsets, *heads, 0.2, *order, *places))

    def test_dead_keys_may_hold_anything(self, each):
        q, k, v = operands(2, 6, 20, 2, 2, 16)
        keep = torch.arange(20) < torch.tensor([[20], [13]])
        expected = each(q, k, v, keep, None, 2, 2, 0.25, False)
        for x in (k, v):
            x[1, 13:] = math.nan
        assert torch.equal(each(q, k, v, keep, None, 2, 2, 0.25, False), expected)

    def test_a_row_alone_equals_the_row_in_a_batch(self, each):
        q, k, v = operands(5, 70, 70, 4, 4, 32)
        keep = torch.arange(70) < torch.tensor([[70], [3], [64], [1], [33]])
        together = each(q, k, v, keep, None, 4, 4, 0.2, False)
        for row in range(5):
            alone = each(*(x[row : row + 1] for x in (q, k, v)), keep[row : row + 1], None, 4, 4, 0.2, False)
            assert torch.equal(alone[0], together[row])

    def test_a_query_alone_equals_the_query_among_others(self, each):
        q, k, v = operands(1, 23, 65, 2, 1, 48)
        together = each(q, k, v, None, None, 2, 1, 0.2, False)
        apart = torch.cat([each(row, k, v, None, None, 2, 1, 0.2, False) for row in q.split(5, 1)], 1)
        assert torch.equal(together, apart)

    @pytest.mark.parametrize("causal", [False, True])
    @pytest.mark.parametrize("shape", [(1, 512, 1), (1, 300, 3), (4, 128, 12)], ids=str)
    def test_threads_change_no_bit(self, each, shape, causal):
        batch, length, heads = shape
        q, k, v = operands(batch, length, length, heads, heads, 32)
        torch.set_num_threads(2)
        two = each(q, k, v, None, None, heads, heads, 0.2, causal)
        torch.set_num_threads(1)
        assert torch.equal(two, each(q, k, v, None, None, heads, heads, 0.2, causal))

    def test_trailing_padding_of_a_general_mask(self, each):
        q, k, v = operands(1, 12, 40, 2, 2, 16)
        mask = draw(1, 2, 12, 40)
        mask[..., 30:] = -math.inf
        short = each(q, k[:, :30], v[:, :30], mask[..., :30], None, 2, 2, 0.25, False)
        assert torch.equal(each(q, k, v, mask, None, 2, 2, 0.25, False), short)


def test_rows_that_see_nothing_are_zeros(each):
    q, k, v = operands(2, 5, 18, 2, 2, 8)
    keep = torch.ones(2, 18, dtype=torch.bool)
    keep[1] = False
    assert (each(q, k, v, keep, None, 2, 2, 0.3, False)[1] == 0).all()
    whole = keep[:, None, None].expand(2, 1, 5, 18)
    assert (each(q, k, v, whole, None, 2, 2, 0.3, False)[1] == 0).all()
    bias = torch.zeros(whole.shape).masked_fill(~whole, -math.inf)
    assert (each(q, k, v, bias, None, 2, 2, 0.3, False)[1] == 0).all()
    keep[1, 9:] = True
    y = each(q, k, v, keep, None, 2, 2, 0.3, True)
    assert (y[1] == 0).all(), "causal queries before the first live key"
    assert (y[0] != 0).any()


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ((None, False, 3, None, None), "diagonal and window take a causal order"),
        ((None, True, 0, 0, None), "window of 0 keys is not positive"),
        ((None, True, 0, 4, torch.arange(6)), "places are one for each token of a row, with offsets"),
        ((torch.tensor([0, 6]), True, 0, 4, torch.arange(5)), "places are one for each token of a row"),
    ],
)
def test_windows_that_make_no_sense(given, text):
    if not native.available():
        pytest.skip("the C++ kernels are not available")
    offsets, *order = given
    with pytest.raises(RuntimeError, match=text):
        op(*operands(1, 6, 6, 2, 2, 8), None, offsets, 2, 2, 0.3, *order)


def test_no_keys_give_zeros(each):
    q, k, v = operands(2, 3, 0, 2, 2, 8)
    assert torch.equal(each(q, k, v, None, None, 2, 2, 0.3, False), torch.zeros(2, 3, 16))


@pytest.mark.parametrize("magnitude", [1e-20, 1e4, 1e18], ids=str)
def test_large_and_small_scores(each, magnitude):
    q, k, v = operands(1, 9, 33, 1, 1, 16)
    q = q * magnitude
    y = each(q, k, v, None, None, 1, 1, 1.0, False)
    # Products of float32 are rounded by 1e-7 of themselves, which at 1e4 decides between keys that nearly tie.
    torch.testing.assert_close(y.double(), exact(q, k, v, None, 1.0, False), rtol=5e-3, atol=1e-2)


def test_far_scores_vanish_exactly(each):
    q, k, v = torch.ones(1, 1, 1, 1), torch.tensor([0.0, -88.5, -1e4, -3e38]).view(1, 4, 1, 1), torch.ones(1, 4, 1, 1)
    v[0, 1:] = 1e30
    y = each(q, k, v, None, None, 1, 1, 1.0, False)
    assert abs(y.item() - 1) < 1e-6 + math.exp(-88.5) * 1e30


def test_the_least_float_as_bias_ties_as_in_torch(each):
    """A row whose every score carries finfo.min has equal scores: its result is the mean of the values."""
    q, k, v = operands(1, 2, 21, 1, 1, 8)
    bias = torch.full((1, 1, 2, 21), torch.finfo(torch.float32).min)
    assert_exact(each(q, k, v, bias, None, 1, 1, 0.3, False), v[:, :, 0].double().mean(1, keepdim=True).expand(1, 2, 8))


@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
@pytest.mark.parametrize("where", ["query", "key", "value"])
def test_nan_and_infinity_spread_as_in_torch(each, where, value):
    named = dict(zip(("query", "key", "value"), operands(1, 10, 20, 1, 1, 8), strict=True))
    named[where][0, 3, 0, 2] = value
    q, k, v = named.values()
    y = each(q, k, v, None, None, 1, 1, 0.3, False)
    weights = torch.einsum("bqhd,bkhd->bhqk", q, k * 0.3).double().softmax(-1)
    expected = torch.einsum("bhqk,bkhd->bqhd", weights, v.double()).flatten(2)
    torch.testing.assert_close(y.double(), expected, rtol=2e-2, atol=4e-2, equal_nan=True)
    assert not y.isfinite().all()


def test_agrees_with_torch(each):
    q, k, v = operands(2, 33, 33, 4, 2, 64)
    expected = functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v)), is_causal=True, enable_gqa=True
    )
    y = each(q, k, v, None, None, 4, 2, 1 / 8, True)
    slack = 3e-2 if native.available() and native.use_isa("") == BFLOAT16 else 2e-6
    torch.testing.assert_close(y, expected.transpose(1, 2).flatten(2), rtol=slack, atol=slack)


REFUSED = {
    "5 heads cannot share 2 key heads evenly": ((2, 3, 10), (2, 3, 4), (2, 3, 4), None, None, 5, 2),
    "takes both key and value, or neither": ((2, 3, 4), (2, 3, 4), None, None, None, 2, 2),
    "query has 9 columns, which are not 2 heads": ((2, 3, 9), (2, 3, 8), (2, 3, 8), None, None, 2, 2),
    "key has 3 heads, not 2": ((2, 3, 2, 4), (2, 3, 3, 4), (2, 3, 2, 4), None, None, 2, 2),
    "do not fit": ((2, 3, 8), (2, 4, 8), (2, 5, 8), None, None, 2, 2),
    "value has 2 dimensions": ((2, 3, 8), (2, 3, 8), (3, 8), None, None, 2, 2),
    "merged query, key and value have 3 dimensions, not 4": ((2, 3, 6, 4), None, None, None, None, 2, 2),
    "mask has 5 places along axis 1, not 3 or 1": ((2, 3, 8), (2, 3, 8), (2, 3, 8), (2, 5), None, 2, 2),
    "mask is Bool of 3 dimensions": ((2, 3, 8), (2, 3, 8), (2, 3, 8), (2, 3, 3), None, 2, 2),
    "takes one row of tokens, not a batch of 2": ((2, 3, 8), (2, 3, 8), (2, 3, 8), None, [0, 3], 2, 2),
    "rise from 0 to the number of tokens, 3": ((1, 3, 8), (1, 3, 8), (1, 3, 8), None, [0, 2], 2, 2),
    "takes no mask, and as many keys as queries": ((1, 3, 8), (1, 3, 8), (1, 3, 8), (1, 3), [0, 3], 2, 2),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_it_refuses(message):
    if not native.available():
        pytest.skip("the C++ kernels are not available")
    q, k, v, mask, offsets, heads, kv_heads = REFUSED[message]
    tensors = [None if shape is None else torch.zeros(shape) for shape in (q, k, v)]
    mask = None if mask is None else torch.ones(mask, dtype=torch.bool)
    offsets = None if offsets is None else torch.tensor(offsets)
    with pytest.raises(RuntimeError, match=message):
        op(*tensors, mask, offsets, heads, kv_heads, 1.0, False)


@examples
@given(lengths, lengths, heads_of, features, st.sampled_from(["none", "padding", "bool"]), st.integers(0, 99))
def test_bfloat16_operands(each, queries, keys, heads, width, kind, seed):
    q, k, v = (x.bfloat16() for x in operands(2, queries, keys, *heads, width, seed))
    mask = mask_of(kind, 2, heads[0], queries, keys, seed)
    scale = width**-0.5
    y = each(q, k, v, mask, None, *heads, scale, False)
    assert_exact(y, exact(q.float(), k.float(), v.float(), mask, scale, False))


def test_bfloat16_columns_of_one_tensor(each):
    merged = draw(2, 9, 3 * 40).bfloat16()
    apart = each(*(x.unflatten(2, (2, 20)) for x in merged.chunk(3, 2)), None, None, 2, 2, 0.25, True)
    assert torch.equal(each(merged, None, None, None, None, 2, 2, 0.25, True), apart)


def test_operands_of_two_dtypes_are_widened(each):
    q, k, v = operands(1, 5, 5, 2, 2, 16)
    for mixed in [(q.bfloat16(), k, v), (q, k.bfloat16(), v.half()), tuple(x.half() for x in (q, k, v))]:
        wide = [x.float() for x in mixed]
        y = each(*mixed, None, None, 2, 2, 0.25, False)
        assert torch.equal(y, each(*wide, None, None, 2, 2, 0.25, False))


def test_passes_opcheck(each):
    q, k, v = (x.flatten(2) for x in operands(2, 5, 7, 4, 2, 8))
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(op.default, (q, k, v, None, None, 4, 2, 0.3, True), test_utils=tests)
    merged = torch.cat([q[:, :5], k[:, :5], v[:, :5]], 2)
    torch.library.opcheck(op.default, (merged, None, None, None, None, 4, 2, 0.3, False), test_utils=tests)
    apart = (q.unflatten(2, (4, 8)), k.unflatten(2, (2, 8)), v.unflatten(2, (2, 8)))
    keep = torch.ones(2, 7, dtype=torch.bool)
    torch.library.opcheck(op.default, (*apart, keep, None, 4, 2, 0.3, False), test_utils=tests)
