"""Attention in bfloat16: the Triton kernel and torch's, against float64, on what heads and masks there are."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fxquant.kernels.cpu.attention import apart
from fxquant.kernels.cuda import attention

pytestmark = pytest.mark.usefixtures("interpreted")
few = settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def heads(batch=2, positions=70, heads=4, kv_heads=2, features=24, seed=0):
    """Return query, key and value (B, S, heads, D) of one tensor, holding what bfloat16 does."""
    merged = torch.randn(batch, positions, (heads + 2 * kv_heads) * features, generator=_generator(seed))
    return apart(merged.to(torch.bfloat16).float(), None, None, heads, kv_heads)


def _generator(seed):
    return torch.Generator().manual_seed(seed)


def wanted(query, key, value, seen, scale):
    """Return attention (B, S, heads·D) in float64; `seen` broadcasts to (B, heads, Sq, Sk)."""
    group = query.shape[2] // key.shape[2]
    q, k, v = (x.double().transpose(1, 2) for x in (query, key, value))
    k, v = (x.repeat_interleave(group, 1) for x in (k, v))
    scores = (q @ k.transpose(2, 3) * scale).masked_fill(~seen, -torch.inf)
    weights = scores.softmax(-1).nan_to_num(0)
    return (weights @ v).transpose(1, 2).flatten(2)


def assert_near(y, expected):
    """Compare within what bfloat16 probabilities may be off, which the interpreter cuts off rather than rounds."""
    assert y.dtype is torch.float32
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=2**-7 * max(1.0, float(expected.abs().max())))


def triangle(queries, keys):
    return torch.ones(queries, keys, dtype=torch.bool).tril()


@few
@given(
    positions=st.integers(1, 70),
    counts=st.sampled_from([(1, 1), (4, 2), (3, 3)]),
    features=st.sampled_from([8, 16, 24]),
    causal=st.booleans(),
    masked=st.booleans(),
    seed=st.integers(0, 99),
)
def test_batches_with_padding_and_without(positions, counts, features, causal, masked, seed):
    q, k, v = heads(2, positions, *counts, features, seed)
    mask = torch.rand(2, positions, generator=_generator(seed)) > 0.3 if masked else None
    seen = torch.ones(1, 1, positions, positions, dtype=torch.bool) if mask is None else mask[:, None, None]
    seen = seen & triangle(positions, positions) if causal else seen
    y = attention.own(q, k, v, mask, None, 0.3, causal)
    assert_near(y, wanted(q, k, v, seen, 0.3))


def test_more_keys_than_queries():
    (q, _, _), (_, k, v) = heads(positions=5), heads(positions=67)
    mask = torch.arange(67)[None] < torch.tensor([[67], [3]])
    assert_near(attention.own(q, k, v, mask, None, 0.2, False), wanted(q, k, v, mask[:, None, None], 0.2))


def test_one_mask_for_all_and_keys_whose_heads_come_first():
    """As a cache of fixed length has them: (batch, heads, positions, features) in memory, one query, places unused."""
    (q, _, _), (_, k, v) = heads(3, 1), heads(3, 20)
    turned = [each.transpose(1, 2).contiguous().transpose(1, 2) for each in (k, v)]
    mask = (torch.arange(20) < 7)[None]
    assert_near(attention.own(q, *turned, mask, None, 0.2, False), wanted(q, k, v, mask[:, None, None], 0.2))


def test_a_query_that_sees_no_key_gets_zeros():
    q, k, v = heads(positions=9)
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[0] = True
    y = attention.own(q, k, v, mask, None, 0.2, False)
    assert y[1].count_nonzero() == 0
    assert_near(y, wanted(q, k, v, mask[:, None, None], 0.2))


@few
@given(lengths=st.lists(st.integers(0, 80), min_size=1, max_size=5), causal=st.booleans())
def test_packed_sequences_stay_apart(lengths, causal):
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    total = int(offsets[-1])
    q, k, v = heads(1, total, 2, 1, 8)
    owner = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    seen = (owner[:, None] == owner[None])[None, None]
    seen = seen & triangle(total, total) if causal else seen
    if total:
        y = attention.own(q, k, v, None, offsets, 0.3, causal)
        assert_near(y, wanted(q, k, v, seen, 0.3))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", ["none", "bool", "float"])
def test_torchs_kernels(kind, causal):
    q, k, v = heads(positions=12)
    seen = torch.rand(2, 1, 12, 12, generator=_generator(1)) > 0.3
    seen[0, 0, 4] = False
    masks = {"none": None, "bool": seen, "float": torch.where(seen, 0.0, -torch.inf)}
    y = attention.torchs(q, k, v, masks[kind], 0.2, causal)
    seen = torch.ones_like(seen) if kind == "none" else seen
    assert_near(y, wanted(q, k, v, seen & triangle(12, 12) if causal else seen, 0.2))
    assert y.is_contiguous()


def test_each_goes_where_it_is_fast(monkeypatch):
    ran = []
    monkeypatch.setattr(attention, "own", lambda *_: ran.append("own"))
    monkeypatch.setattr(attention, "torchs", lambda *_: ran.append("torch"))
    monkeypatch.setattr(attention, "reference", lambda *_: ran.append("reference"))
    merged, wide = torch.randn(1, 6, 3 * 16), torch.randn(1, 6, 3 * 600)
    padding, general = torch.ones(1, 6, dtype=torch.bool), torch.zeros(1, 1, 6, 6)
    offsets = torch.tensor([0, 2, 6])
    for x, mask, cuts in (
        (merged, padding, None), (merged, None, offsets), (merged, None, None), (merged, general, None),
        (wide, None, None), (merged[:, :0], None, None),
    ):  # fmt: skip
        attention.attention(x, None, None, mask, cuts, 2 if x is merged else 1, 2 if x is merged else 1, 0.2, False)
    assert ran == ["own", "own", "torch", "torch", "reference", "reference"]
