"""Packing and unpacking of tokens, by the C++ ops and by those in Python, against masks of NumPy's kind."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fxquant.kernels
from fxquant.kernels.cpu import native, unpad

assert fxquant.kernels  # defines the ops
ops = torch.ops.fxquant
examples = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
PYTHON = {
    "token_index": unpad.token_index,
    "pack_tokens": unpad.pack_tokens,
    "unpack_tokens": unpad.unpack_tokens,
    "select_token": unpad.select_token,
}


@pytest.fixture(params=["C++", "python"])
def run(request):
    """Return a function that runs an op by its name, in C++ or in Python."""
    if request.param == "python":
        return lambda name, *args: PYTHON[name](*args)
    if not native.available():
        pytest.skip("the C++ kernels are not available")
    return lambda name, *args: getattr(ops, name)(*args)


@st.composite
def masks(draw):
    """Masks with holes, whole rows of padding, none at all, and sizes of 0."""
    rows, columns = draw(st.integers(0, 5)), draw(st.sampled_from([0, 1, 2, 7, 16, 33]))
    kept = draw(st.sampled_from([0.0, 0.3, 0.8, 1.0]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    return torch.rand(rows, columns, generator=generator) < kept


def values(mask, *shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(*mask.shape, *shape, generator=generator).mul(100).to(dtype)


DTYPES = [torch.bool, torch.int64, torch.int32, torch.float32]


@examples
@given(masks(), st.sampled_from(DTYPES))
def test_index_and_offsets(run, mask, dtype):
    index, offsets = run("token_index", mask.to(dtype))
    assert index.dtype == offsets.dtype == torch.int64
    assert index.tolist() == [i for i, live in enumerate(mask.flatten().tolist()) if live]
    lengths = mask.sum(1).tolist()
    assert offsets.tolist() == [sum(lengths[:i]) for i in range(len(lengths) + 1)]


@examples
@given(
    masks(), st.sampled_from([(), (1,), (5,), (0,), (3, 4)]), st.sampled_from([torch.float32, torch.int64, torch.uint8])
)
def test_there_and_back(run, mask, shape, dtype):
    x = values(mask, *shape, dtype=dtype)
    index, _ = run("token_index", mask)
    (packed,) = run("pack_tokens", [x], mask, index)
    assert packed.dtype == dtype
    assert torch.equal(packed, x[mask][None])
    padded = run("unpack_tokens", packed, mask, index)
    expected = torch.zeros_like(x)
    expected[mask] = x[mask]
    assert torch.equal(padded, expected)
    for place in range(-mask.shape[1], mask.shape[1]):
        assert torch.equal(run("select_token", packed, mask, index, place), expected[:, place])


LAYOUTS = {
    "as it is": lambda x: x,
    "positions before sequences": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "columns of more": lambda x: torch.nn.functional.pad(x, (2, 3))[..., 2:-3],
    "columns apart": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "more positions": lambda x: torch.nn.functional.pad(x, (0, 0, 0, 9), value=7.0),
    "one sequence for all": lambda x: x[:1],
    "one position for all": lambda x: x[:, :1],
    "one for all": lambda x: x[:1, :1],
    "expanded": lambda x: x[:1, :, :1].expand(x.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_of_any_layout(run, layout):
    mask = torch.rand(4, 9, generator=torch.Generator().manual_seed(0)) > 0.4
    x = values(mask, 6)
    given = LAYOUTS[layout](x)
    index, _ = run("token_index", mask)
    other, packed = run("pack_tokens", [mask.long(), given], mask, index)
    assert torch.equal(packed, given[:, :9].expand(x.shape)[mask][None])
    assert bool((other == 1).all())


@pytest.mark.parametrize("threads", [1, 2])
def test_large_batches_are_split_over_threads(run, threads):
    mask = torch.rand(16, 128, generator=torch.Generator().manual_seed(0)) > 0.3
    x = values(mask, 96)
    index, _ = run("token_index", mask)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        (packed,) = run("pack_tokens", [x], mask, index)
        padded = run("unpack_tokens", packed, mask, index)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(packed, x[mask][None])
    assert torch.equal(padded, torch.where(mask[..., None], x, 0.0))


def test_padding_may_hold_anything(run):
    mask = torch.tensor([[True, False, True]])
    x = torch.tensor([[[1.0], [torch.nan], [2.0]]])
    index, _ = run("token_index", mask)
    (packed,) = run("pack_tokens", [x], mask, index)
    assert run("unpack_tokens", packed, mask, index).flatten().tolist() == [1.0, 0.0, 2.0]


def test_nothing_is_an_alias(run):
    mask = torch.ones(2, 3, dtype=torch.bool)
    x = values(mask, 4)
    index, _ = run("token_index", mask)
    (packed,) = run("pack_tokens", [x], mask, index)
    padded = run("unpack_tokens", packed, mask, index)
    first = run("select_token", packed, mask, index, 0)
    expected = x.clone()
    for changed in (x, packed):
        changed.zero_()
    assert torch.equal(padded, expected)
    assert torch.equal(first, expected[:, 0])


MASK = torch.tensor([[True, True, False], [True, False, False]])
REFUSED = {
    r"a mask of tokens is \(batch, positions\), not of 1 dim": ("token_index", MASK[0]),
    r"values of \[3, 3\] cannot be packed by a mask of 2 by 3": ("pack_tokens", [MASK[[0, 0, 0]]], MASK, [0]),
    r"values of \[2, 2\] cannot be packed by a mask of 2 by 3": ("pack_tokens", [MASK[:, :2]], MASK, [0]),
    r"values of \[3\] cannot be packed": ("pack_tokens", [MASK[0]], MASK, [0]),
    "points to place 6 of 2 by 3": ("pack_tokens", [MASK], MASK, [0, 6]),
    "an index of tokens rises from 0": ("pack_tokens", [MASK], MASK, [-1]),
    "index of tokens rises": ("unpack_tokens", torch.zeros(1, 2), MASK, [1, 1]),
    r"\[1, 2, 4\] are not one row of 3 tokens": ("unpack_tokens", torch.zeros(1, 2, 4), MASK, [0, 1, 3]),
    r"\[2, 1\] are not one row of 1 tokens": ("select_token", torch.zeros(2, 1), MASK, [0], 0),
    "there is no token 3 in sequences of 3": ("select_token", torch.zeros(1, 1), MASK, [0], 3),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_it_refuses(message):
    if not native.available():
        pytest.skip("the C++ kernels are not available")
    name, *args = REFUSED[message]
    args = [torch.tensor(each) if isinstance(each, list) and isinstance(each[0], int) else each for each in args]
    with pytest.raises((RuntimeError, IndexError), match=message):
        getattr(ops, name)(*args)


def test_passes_opcheck(run):
    x = values(MASK, 4)
    index, _ = run("token_index", MASK)
    (packed,) = run("pack_tokens", [x], MASK, index)
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(ops.token_index.default, (MASK,), test_utils=tests)
    torch.library.opcheck(ops.pack_tokens.default, ([x, MASK.long()], MASK, index), test_utils=tests)
    torch.library.opcheck(ops.unpack_tokens.default, (packed, MASK, index), test_utils=tests)
    torch.library.opcheck(ops.select_token.default, (packed, MASK, index, 0), test_utils=tests)
