"""Attention is found as ATen's op, which products around a softmax are in canonical graphs."""

import torch
from graphs import Call
from torch.nn import functional

import fxquant as fxq
from fxquant.passes.attention_spelling import spelled
from fxquant.passes.canonicalize import canonicalize

Q, K, V = (torch.randn(2, 4, n, 8, generator=torch.Generator().manual_seed(n)) for n in (5, 6, 6))
M = torch.randn(2, 1, 5, 6)


def test_arguments_have_names():
    def attend(*each):
        return functional.scaled_dot_product_attention(*each, scale=2.0)

    gm = canonicalize(fxq.capture(Call(attend).eval(), (Q, K, V, M)))
    (attention,) = spelled(gm)
    assert (attention.scale, attention.causal, attention.grouped, attention.dropout) == (2.0, False, False, 0.0)
    assert [each.name for each in (attention.query, attention.key, attention.value, attention.mask)] == [
        node.name for node in attention.result.graph.nodes if node.op == "placeholder"
    ]
