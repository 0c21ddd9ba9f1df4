"""Attention is found as ATen's op and as products around a softmax; what only looks like it is not."""

import pytest
import torch
from graphs import Call
from torch.nn import functional

import fxquant as fxq
from fxquant.passes.attention_spelling import spelled
from fxquant.passes.canonicalize import canonicalize

Q, K, V = (torch.randn(2, 4, n, 8, generator=torch.Generator().manual_seed(n)) for n in (5, 6, 6))
M, N = torch.randn(2, 1, 5, 6), torch.randn(2, 4, 5, 6)


def found(function, *inputs):
    gm = canonicalize(fxq.capture(Call(function).eval(), inputs))
    return gm, list(spelled(gm))


SPELLINGS = {
    "plain": (lambda q, k, v, m, n: (q @ k.transpose(2, 3)).softmax(-1) @ v, 1.0, 0),
    "scaled": (lambda q, k, v, m, n: ((q @ k.transpose(-1, -2)) * 0.5).softmax(-1) @ v, 0.5, 0),
    "divided": (lambda q, k, v, m, n: (q @ k.transpose(2, 3) / 4.0).softmax(3) @ v, 0.25, 0),
    "divided and scaled": (lambda q, k, v, m, n: (q @ k.transpose(2, 3) / 4.0 * 3.0).softmax(-1) @ v, 0.75, 0),
    "masked": (lambda q, k, v, m, n: (q @ k.transpose(2, 3) * 0.5 + m).softmax(-1) @ v, 0.5, 1),
    "mask first": (lambda q, k, v, m, n: (m + q @ k.transpose(2, 3) * 0.5).softmax(-1) @ v, 0.5, 1),
    "two masks": (lambda q, k, v, m, n: (q @ k.transpose(2, 3) * 0.5 + n + m).softmax(-1) @ v, 0.5, 2),
}


@pytest.mark.parametrize("case", SPELLINGS)
def test_softmax_between_products(case):
    function, scale, masks = SPELLINGS[case]
    gm, (attention,) = found(function, Q, K, V, M, N)
    x = dict(zip([node for node in gm.graph.nodes if node.op == "placeholder"], (Q, K, V, M, N), strict=False))
    assert attention.scale == pytest.approx(scale)
    assert len(attention.masks) == masks
    scores = x[attention.query] @ x[attention.key].transpose(2, 3) * attention.scale
    scores = scores + sum(x[mask] for mask in attention.masks)
    torch.testing.assert_close(scores.softmax(-1) @ x[attention.value], function(Q, K, V, M, N))
    inside = {node.target for node in attention.nodes}
    assert torch.ops.aten.softmax.int in inside
    assert attention.result in attention.nodes


def test_one_op():
    _, (attention,) = found(lambda *each: functional.scaled_dot_product_attention(*each, scale=2.0), Q, K, V, M)
    assert (attention.scale, attention.causal, attention.grouped, attention.dropout) == (2.0, False, False, 0.0)
    assert [each.name for each in (attention.query, attention.key, attention.value, *attention.masks)] == [
        node.name for node in attention.result.graph.nodes if node.op == "placeholder"
    ]


NEAR_MISSES = {
    "weights are read": lambda q, k, v, m: ((w := (q @ k.transpose(2, 3)).softmax(-1)) @ v, w),
    "scores are read": lambda q, k, v, m: ((s := q @ k.transpose(2, 3)).softmax(-1) @ v, s),
    "softmax over queries": lambda q, k, v, m: (q @ k.transpose(2, 3)).softmax(2) @ v,
    "mask before the scale": lambda q, k, v, m: ((q @ k.transpose(2, 3) + m) * 0.5).softmax(-1) @ v,
    "a cap on the scores": lambda q, k, v, m: (q @ k.transpose(2, 3)).tanh().softmax(-1) @ v,
    "twice the mask": lambda q, k, v, m: torch.add(q @ k.transpose(2, 3), m, alpha=2).softmax(-1) @ v,
    "no transpose": lambda q, k, v, m: (q @ q).softmax(-1) @ q,
    "heads and positions swapped": lambda q, k, v, m: (q @ k.transpose(1, 3)).softmax(-1) @ v,
    "scaled by a tensor": lambda q, k, v, m: (q @ k.transpose(2, 3) * m).softmax(-1) @ v,
}


@pytest.mark.parametrize("case", NEAR_MISSES)
def test_near_miss(case):
    square = case in ("no transpose", "heads and positions swapped")
    q, k, v = (torch.randn(2, 8, 8, 8),) * 3 if square else (Q, K, V)
    assert found(NEAR_MISSES[case], q, k, v, M)[1] == []
