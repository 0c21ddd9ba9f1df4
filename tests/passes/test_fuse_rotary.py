"""Rotary embeddings become one kernel, however they are spelled; what is none stays."""

import pytest
import torch
from golden import check_golden
from graphs import Call, applied, canonical_graph

from fxquant.graph.text import to_text
from fxquant.kernels.cpu import native
from fxquant.passes.fuse_rotary import ROTARY, FuseRotary

X, COS, SIN = torch.randn(2, 3, 5, 8), torch.randn(2, 1, 5, 8), torch.randn(2, 1, 5, 8)


@pytest.fixture(autouse=True)
def kernels():
    if not native.available():
        pytest.skip("the C++ kernels are not available, so nothing is fused")


def halves(x):
    return torch.cat((-x[..., 4:], x[..., :4]), -1)


def pairs(x):
    return torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)


def chunks(x):
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), dim=3)


def partial(x, cos, sin):
    own, rest = x[..., :8], x[..., 8:]
    return torch.cat((own * cos + halves(own) * sin, rest), -1)


SPELLINGS = {
    "halves": lambda x, cos, sin: x * cos + halves(x) * sin,
    "sine first": lambda x, cos, sin: sin * halves(x) + cos * x,
    "chunks": lambda x, cos, sin: x * cos + chunks(x) * sin,
    "pairs": lambda x, cos, sin: x * cos + pairs(x) * sin,
    "pairs reshaped": lambda x, cos, sin: (
        x * cos + torch.stack((-x[..., 1::2], x[..., ::2]), -1).reshape(x.shape) * sin
    ),
    "factors of one sequence": lambda x, cos, sin: x * cos[:1] + halves(x) * sin[:1],
}
NEAR_MISSES = {
    "not negated": lambda x, cos, sin: x * cos + torch.cat((x[..., 4:], x[..., :4]), -1) * sin,
    "the other half negated": lambda x, cos, sin: x * cos + torch.cat((x[..., 4:], -x[..., :4]), -1) * sin,
    "halves in place": lambda x, cos, sin: x * cos + torch.cat((-x[..., :4], x[..., 4:]), -1) * sin,
    "uneven parts": lambda x, cos, sin: x * cos + torch.cat((-x[..., 5:], x[..., :5]), -1) * sin,
    "another tensor": lambda x, cos, sin: x * cos + halves(x * 2) * sin,
    "a difference": lambda x, cos, sin: x * cos - halves(x) * sin,
    "weighted": lambda x, cos, sin: torch.add(x * cos, halves(x) * sin, alpha=2),
    "factors by head": lambda x, cos, sin: x * cos.expand(x.shape) + halves(x) * sin,
    "a product read elsewhere": lambda x, cos, sin: ((y := x * cos) + halves(x) * sin, y),
    "no axis of heads": lambda x, cos, sin: x[0] * cos[0] + halves(x[0]) * sin[0],
}


def fused(function, x=X):
    before = canonical_graph(Call(function), x, COS, SIN)
    after, _ = applied(before, FuseRotary())
    return before, after


def kinds(gm):
    return [node.target for node in gm.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_is_one_kernel(name):
    before, after = fused(SPELLINGS[name])
    assert kinds(after)[-1] is ROTARY
    assert len(kinds(after)) == 1 + 2 * (name == "factors of one sequence")
    torch.testing.assert_close(after(X, COS, SIN), before(X, COS, SIN))


def test_features_that_are_not_turned_go_through_the_kernel():
    wide = torch.randn(2, 3, 5, 12)
    before, after = fused(partial, wide)
    assert kinds(after) == [ROTARY]
    torch.testing.assert_close(after(wide, COS, SIN), before(wide, COS, SIN))


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_miss(name):
    _, after = fused(NEAR_MISSES[name])
    assert ROTARY not in kinds(after)


def test_golden():
    before, after = fused(partial, torch.randn(2, 3, 5, 12))
    check_golden("fuse_rotary", f"before fuse_rotary:\n{to_text(before)}\nafter:\n{to_text(after)}")
