"""Attention with a cache and rotary embeddings: each instruction set against Python, and caches that grow in place."""

import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from instruction_sets import using

from fxquant.kernels.cpu.cached_attention import cached_attention
from fxquant.kernels.cpu.rotary import rotary

op, rotate = torch.ops.fxquant.cached_attention.default, torch.ops.fxquant.rotary.default
examples = settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
FEW = 8  # queries that read keys as they lie
NOTHING = (None,) * 6  # no mask, bias, norms and rotary factors


@pytest.fixture
def isa(native_isa):
    return native_isa


@pytest.fixture
def cpp():
    with using("avx2"):
        yield


def draw(*shape):
    return torch.randn(*shape)


MASKS = {
    "none": lambda batch, heads, tokens, keys: None,
    "padding": lambda batch, heads, tokens, keys: torch.rand(batch + 1, keys + 3) > 0.3,
    "one row": lambda batch, heads, tokens, keys: torch.rand(1, keys) > 0.3,
    "bool": lambda batch, heads, tokens, keys: torch.rand(batch, 1, tokens, keys) > 0.3,
    "float": lambda batch, heads, tokens, keys: torch.randn(1, heads, tokens, keys),
}
BIASES = {
    "none": lambda batch, heads, tokens, keys: None,
    "a slope a head": lambda batch, heads, tokens, keys: draw(heads, 1, 1) * torch.arange(keys).expand(batch, 1, 1, -1),
    "all alike": lambda batch, heads, tokens, keys: draw(1, 1, tokens, 1),
    "of every score": draw,
    "across": lambda batch, heads, tokens, keys: draw(1, heads, keys, tokens).transpose(2, 3),
}


@given(
    st.integers(1, 3), st.sampled_from([1, 2, FEW, FEW + 1, 19]), st.sampled_from([0, 1, 13, 40, 70]),
    st.sampled_from([(1, 1), (4, 2), (6, 1), (3, 3)]), st.sampled_from([4, 16, 20, 64, 72]), st.data(),
)  # fmt: skip
@examples
def test_it_is_what_the_implementation_in_python_says(isa, batch, tokens, past, heads_of, size, data):
    heads, held = heads_of
    together, interleaved = (data.draw(st.booleans()) for _ in range(2))
    turned = data.draw(st.sampled_from([0, size // 2, size]))
    x = draw(batch, tokens, (heads + 2 * held) * size)
    q, k, v = x.split([heads * size, held * size, held * size], -1)
    rows = (x, None, None) if together else (q, k.unflatten(2, (held, size)), v)
    cache = draw(batch, held, past, size), draw(batch, held, past, size)
    mask = MASKS[data.draw(st.sampled_from(list(MASKS)))](batch, heads, tokens, past + tokens)
    added = mask is not None and mask.dtype is torch.float32  # which leaves no place for a bias
    bias = None if added else BIASES[data.draw(st.sampled_from(list(BIASES)))](batch, heads, tokens, past + tokens)
    norms = tuple(draw(size) if data.draw(st.booleans()) else None for _ in range(2))
    factors = (draw(batch, 1, tokens, turned), draw(1, tokens, turned)) if turned else (None, None)
    seen = data.draw(st.sampled_from([(None, None), (past, None), (past, 1), (past, 5), (past, 33), (past - 2, 40)]))
    groups = heads if together and heads == held and data.draw(st.booleans()) else 1
    cap = data.draw(st.sampled_from([None, 0.7, 30.0]))
    sizes = (heads, held, size**-0.5, cap, *seen, 1e-5, interleaved, groups)
    arguments = (*rows, *cache, mask, bias, *norms, *factors, *sizes)
    near = 0.05 if isa == "avx512_bf16" and tokens > FEW else 2e-5
    for one, two in zip(op(*arguments), cached_attention(*arguments), strict=True):
        assert one.shape == two.shape
        torch.testing.assert_close(one, two, rtol=near, atol=near)


@given(st.integers(1, 3), st.integers(1, 5), st.sampled_from([(2, 2), (16, 8), (20, 6), (70, 70)]), st.booleans())
@examples
def test_features_are_turned_in_pairs(isa, batch, tokens, sizes, interleaved):
    size, turned = sizes
    x = draw(batch, tokens, 3, size).transpose(1, 2)
    angle = draw(batch, tokens, turned // 2)
    angle = angle.repeat_interleave(2, -1) if interleaved else torch.cat((angle, angle), -1)
    found = rotate(x, angle.cos(), angle.sin(), interleaved)
    torch.testing.assert_close(found, rotary(x, angle.cos(), angle.sin(), interleaved), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.norm(dim=-1), x.norm(dim=-1))  # a rotation keeps lengths
    torch.testing.assert_close(rotate(found, angle.cos(), -angle.sin(), interleaved), x, rtol=1e-4, atol=1e-5)


def step(past, tokens=1):
    """Return the cache after some tokens, which has to be what Python joins."""
    x = draw(1, tokens, 24)
    arguments = (x, None, None, *past, *NOTHING, 4, 1, 1.0, None, past[0].shape[2], None, 0.0, False)
    found, expected = op(*arguments), cached_attention(*arguments)
    torch.testing.assert_close(found[1:], expected[1:], rtol=0, atol=0)
    return found[1:]


def same_memory(one, two):
    return [a.data_ptr() == b.data_ptr() for a, b in zip(one, two, strict=True)] == [True, True]


def test_a_cache_grows_in_place_and_none_that_is_held_changes(cpp):
    empty = (torch.empty(1, 1, 0, 4), torch.empty(1, 1, 0, 4))
    held = [step(empty, 3)]
    for _ in range(200):  # which outgrows the memory several times
        held.append(step(held[-1]))
    copies = [tuple(tensor.clone() for tensor in cache) for cache in held]
    assert sum(itertools.starmap(same_memory, itertools.pairwise(held))) >= len(held) - 8
    step(held[-1])
    for cache, copy in zip(held, copies, strict=True):
        torch.testing.assert_close(cache, copy, rtol=0, atol=0)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(lambda cache: cache, id="followed already"),
        pytest.param(lambda cache: tuple(tensor[:, :, :2] for tensor in cache), id="a shorter part"),
        pytest.param(lambda cache: tuple(tensor[:, :, 1:] for tensor in cache), id="a later part"),
        pytest.param(lambda cache: tuple(tensor.clone() for tensor in cache), id="a copy"),
        pytest.param(lambda cache: tuple(tensor.index_select(0, torch.tensor([0])) for tensor in cache), id="chosen"),
        pytest.param(lambda cache: tuple(tensor.transpose(0, 1) for tensor in cache), id="other strides"),
    ],
)
def test_what_is_not_the_longest_of_its_memory_is_copied(cpp, other):
    first = step((torch.empty(1, 1, 0, 4), torch.empty(1, 1, 0, 4)), 3)
    second = step(first)
    kept = tuple(tensor.clone() for tensor in second)
    assert same_memory(first, second)
    assert not same_memory(step(other(first)), second)
    torch.testing.assert_close(second, kept, rtol=0, atol=0)


@pytest.mark.parametrize("tokens", [1, FEW + 1])
def test_groups_of_merged_heads_are_another_order_of_columns(isa, tokens):
    x, cache = draw(2, tokens, 3 * 4 * 8), (draw(2, 4, 5, 8), draw(2, 4, 5, 8))
    tail = (*cache, *NOTHING, 4, 4, 0.3, None, 5, None, 0.0, False)
    by_head = x.unflatten(2, (3, 4, 8)).transpose(2, 3).flatten(2)
    assert_all_equal(op(by_head, None, None, *tail, 4), op(x, None, None, *tail))


def assert_all_equal(found, expected):
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


def test_the_number_of_threads_does_not_matter(isa):
    x, cache = draw(2, 1, 8 * 64), (draw(2, 2, 300, 64), draw(2, 2, 300, 64))
    mask = torch.rand(2, 301) > 0.2
    arguments = (x, None, None, *cache, mask, *NOTHING[1:], 4, 2, 0.1, 5.0, 300, 200, 0.0, False)
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(op(*arguments)[0])
    assert torch.equal(*found)


def test_a_query_that_sees_no_key_gets_zeros(isa):
    x, cache = draw(1, 1, 24), (draw(1, 1, 5, 4), draw(1, 1, 5, 4))
    hidden = torch.zeros(1, 6, dtype=torch.bool)
    assert not op(x, None, None, *cache, hidden, *NOTHING[1:], 4, 1, 1.0, None, 5, None, 0.0, False)[0].any()


@pytest.mark.parametrize("tokens", [1, 2, FEW + 4])
def test_dead_keys_change_no_bit(isa, tokens):
    """What is left out is left out, so the result is that of the live keys alone."""
    heads, size, live = 2, 20, torch.rand(50) > 0.4
    live[-tokens:] = True
    past, x = draw(2, 1, heads, 50 - tokens, size), draw(1, tokens, 3 * heads * size)
    tail = (heads, heads, 0.2, None, None, None, 0.0, False)
    found = op(x, None, None, *past, live[None], *NOTHING[1:], *tail)[0]
    dense = past[:, :, :, live[: 50 - tokens]]
    torch.testing.assert_close(found, op(x, None, None, *dense, *NOTHING, *tail)[0], rtol=0, atol=0)
    if tokens > 1:  # causality counts places, not live keys
        diagonal = 50 - tokens
        seen = op(x, None, None, *past, live[None], *NOTHING[1:], *tail[:4], diagonal, *tail[5:])[0]
        first = op(x[:, :1], None, None, *past, live[None, : diagonal + 1], *NOTHING[1:], *tail)[0]
        near = 0.05 if isa == "avx512_bf16" else 1e-5  # the products of many queries are others
        torch.testing.assert_close(seen[:, :1], first, rtol=near, atol=near)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            {"past_key": torch.zeros(1, 2, 3, 4)},
            r"cache of keys is Float \[1, 2, 3, 4\]; expected float32 \(1, 1, length",
        ),
        ({"past_value": torch.zeros(1, 1, 2, 4)}, "the cache has 3 keys and 2 values"),
        ({"mask": torch.ones(1, 3, dtype=torch.bool)}, "the mask is .1, 3., for 1 sequences of 4 keys"),
        ({"cos": torch.zeros(1, 1, 6), "sin": torch.zeros(1, 1, 6)}, "rotary factors for 6 features of 4"),
        ({"cos": torch.zeros(3, 1, 4), "sin": torch.zeros(3, 1, 4)}, "do not fit 1 sequences of 1 positions"),
        ({"kv_heads": 3}, "4 heads cannot share 3 key heads evenly"),
        ({"q_norm": torch.zeros(6)}, r"weights of a head's norm are float32 \(4\), not \[6\]"),
        ({"window": 3, "diagonal": None}, "a window of 3 keys; it is positive and takes a diagonal"),
        ({"groups": 2}, "2 groups of merged heads, of 4 queries and 1 keys; it takes 1, or as many"),
        ({"bias": torch.zeros(1, 4)}, "bias is Float of 2 dimensions; it takes float32 of 4"),
        ({"bias": torch.zeros(1, 1, 1, 4), "mask": torch.zeros(1, 1, 1, 4)}, "float32 of 4, and a mask of bool"),
    ],
)
def test_what_does_not_fit_is_an_error(cpp, change, text):
    given = {"q": draw(1, 1, 24), "k": None, "v": None, "mask": None, "cos": None, "sin": None, "heads": 4}
    given |= {"bias": None, "q_norm": None, "k_norm": None, "cap": None, "window": None, "eps": 0.0}
    given |= {"past_key": draw(1, 1, 3, 4), "past_value": draw(1, 1, 3, 4), "kv_heads": 1, "scale": 1.0}
    with pytest.raises(RuntimeError, match=text):
        op(**given | {"diagonal": 3, "interleaved": False} | change)


def test_fake_tensors_have_the_shapes_of_the_results(cpp):
    x, cache = draw(2, 3, 8 * 6), (draw(2, 2, 5, 6), draw(2, 2, 5, 6))
    arguments = (x, None, None, *cache, *NOTHING, 4, 2, 1.0, None, 5, None, 0.0, False)
    torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))
    factors = (draw(2, 1, 3, 4), draw(2, 1, 3, 4))
    torch.library.opcheck(rotate, (draw(2, 4, 3, 6), *factors, True), test_utils=("test_schema", "test_faketensor"))
