"""Queries, keys and values of 8-bit linears in bfloat16, where attention alone reads them."""

import pytest
import torch
from golden import check_golden
from graphs import lowered_graph
from torch import nn
from torch.nn import functional

from fxquant.graph import edit
from fxquant.graph.text import to_text
from fxquant.passes.narrow_products import NarrowProducts

WIDTH = 32
PASSES = ["merge_linears", "sink_quantize", "fuse_attention", "simplify_masks"]
ops = torch.ops.fxquant


class Attention(nn.Module):
    """Self-attention between linears; `other` says what else is made of the queries."""

    def __init__(self, other=None):
        super().__init__()
        torch.manual_seed(0)
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.other = other

    def forward(self, x):
        q, k, v = self.query(x), self.key(x), self.value(x)
        y = functional.scaled_dot_product_attention(*(each.unflatten(2, (2, 16)).transpose(1, 2) for each in (q, k, v)))
        y = self.out(y.transpose(1, 2).flatten(2))
        return y if self.other is None else (y, self.other(q))


def x(*shape, seed=0):
    return torch.randn(*(shape or (2, 5, WIDTH)), generator=torch.Generator().manual_seed(seed))


def lowered(model, recipe="dynamic", passes=PASSES):
    return lowered_graph(model, x(), recipe=recipe, backend="cuda", passes=passes)


@pytest.mark.parametrize("recipe", ["dynamic", "static"])
def test_golden(recipe):
    gm = lowered(Attention(), recipe)
    before = to_text(gm)
    with torch.no_grad():
        wide = gm(x(seed=1))
    assert NarrowProducts().apply(gm) == 1
    gm.recompile()
    check_golden(f"narrow_products_{recipe}", f"before narrow_products:\n{before}\nafter:\n{to_text(gm)}")
    with torch.no_grad():
        torch.testing.assert_close(gm(x(seed=1)), wide, rtol=0, atol=0.02 * float(wide.abs().max()))


def test_what_is_known_of_the_result_is_narrow_too():
    gm = lowered(Attention())
    NarrowProducts().apply(gm)
    (attention,) = gm.graph.find_nodes(op="call_function", target=ops.attention.default)
    assert edit.info(attention.args[0]).dtype is torch.bfloat16
    assert edit.info(attention).dtype is torch.float32


@pytest.mark.parametrize(
    "other", [lambda q: q, lambda q: q.mean(), functional.softplus], ids=["returned", "a mean", "an activation"]
)
def test_results_that_others_read_stay_wide(other):
    gm = lowered(Attention(other))
    before = to_text(gm)
    assert NarrowProducts().apply(gm) == 0
    assert to_text(gm) == before


def test_sizes_may_be_asked_for():
    assert NarrowProducts().apply(lowered(Attention(lambda q: torch.zeros(q.shape[1])))) == 1


def test_without_attention_nothing_is_narrow():
    assert NarrowProducts().apply(lowered(nn.Linear(WIDTH, WIDTH))) == 0
