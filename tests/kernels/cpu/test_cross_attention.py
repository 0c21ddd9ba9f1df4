"""Attention to kept keys and values: each instruction set against Python, and one query like many."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from instruction_sets import using

from fxquant.kernels.cpu.cross_attention import cross_attention

op = torch.ops.fxquant.cross_attention.default
examples = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
FEW = 8  # queries that read keys as they lie
MASKS = {
    "none": lambda batch, heads, queries, keys: None,
    "padding": lambda batch, heads, queries, keys: torch.rand(batch, keys) > 0.4,
    "one row": lambda batch, heads, queries, keys: torch.rand(1, keys) > 0.4,
    "bool": lambda batch, heads, queries, keys: torch.rand(batch, 1, 1, keys) > 0.4,
    "float": lambda batch, heads, queries, keys: torch.randn(1, heads, queries, keys),
}


@given(
    st.integers(1, 3), st.sampled_from([1, 2, FEW, FEW + 1, 21]), st.sampled_from([1, 5, 16, 33, 100]),
    st.sampled_from([(1, 1), (4, 2), (6, 1), (3, 3)]), st.sampled_from([4, 16, 20, 64]), st.data(),
)  # fmt: skip
@examples
def test_it_is_what_the_implementation_in_python_says(native_isa, batch, queries, keys, heads_of, size, data):
    heads, held = heads_of
    q = torch.randn(batch, queries, heads * size)
    q = q.unflatten(2, (heads, size)) if data.draw(st.booleans()) else q
    laid = data.draw(st.sampled_from([(0, 1, 2, 3), (0, 2, 1, 3), (2, 0, 1, 3)]))  # the axes in the order of memory
    shape = (batch, held, keys, size)
    key, value = (torch.randn([shape[axis] for axis in laid]).permute(*torch.argsort(torch.tensor(laid))) for _ in "kv")
    mask = MASKS[data.draw(st.sampled_from(list(MASKS)))](batch, heads, queries, keys)
    arguments = (q, key, value, mask, heads, size**-0.5)
    near = 0.05 if native_isa == "avx512_bf16" and queries > FEW else 1e-5
    torch.testing.assert_close(op(*arguments), cross_attention(*arguments), rtol=near, atol=near)


def test_a_padded_source_gives_the_bits_of_the_source_alone(native_isa):
    q, key, value = torch.randn(2, 1, 64), torch.randn(2, 4, 40, 16), torch.randn(2, 4, 40, 16)
    live = torch.arange(40) < 23
    padded = op(q, key, value, live.expand(2, -1), 4, 0.25)
    assert torch.equal(padded, op(q, key[:, :, :23], value[:, :, :23], None, 4, 0.25))


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (torch.zeros(1, 3, 5, 4), "4 heads cannot share 3 key heads evenly"),
        (torch.zeros(1, 5, 4), r"keys and values are .batch, heads, positions, features., not \[1, 5, 4\]"),
        (torch.zeros(2, 4, 5, 4), r"query, key and value do not fit: \[1, 1, 16\]"),
    ],
)
def test_what_does_not_fit_is_an_error(key, text):
    with using("avx2"), pytest.raises(RuntimeError, match=text):
        op(torch.zeros(1, 1, 16), key, key, None, 4, 1.0)


def test_fake_tensors_have_the_shape_of_the_result():
    arguments = (torch.randn(2, 3, 24), torch.randn(2, 2, 5, 6), torch.randn(2, 2, 5, 6), None, 4, 1.0)
    with using("avx2"):
        torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))
