"""Reshapes around a linear go where the leading axes come back; the linear stays the node it was."""

import pytest
import torch
from canonical import after, assert_same, before, story, targets
from golden import check_golden
from torch.nn.functional import layer_norm, linear, relu

from fxquant.graph import edit

aten = torch.ops.aten
KEPT = (aten.linear.default, aten.layer_norm.default, aten.relu.default, aten.add.Tensor)
X, W, B = torch.randn(2, 3, 6), torch.randn(5, 6), torch.randn(5)


def conv1d(x, w, b):
    """Return what transformers' Conv1D computes, less its transpose."""
    return linear(x.view(-1, x.size(-1)), w, b).view((*x.size()[:-1], 5))


def network(x, w, b):
    """Return what OPT's feed-forward network does with a norm before it and its residual."""
    flat = x.reshape(-1, x.size(-1))
    wide = relu(linear(layer_norm(flat, (6,)), w, b))
    return (flat + linear(wide, w.T.contiguous())).view(x.shape)


def stopped(x, w, b):
    """Return what two linears give, of which something else reads rows of the first."""
    inner = linear(x.view(-1, 6), w, b)
    return linear(relu(inner), w.T.contiguous()).view(x.shape) * inner.sum(0)[:1]


NEAR_MISSES = [
    ("rows-read-on-the-way", stopped),
    ("weights-by-row", lambda x, w, b: (x.view(-1, 6) * x[0].repeat(x.shape[0], 1)).view(x.shape)),
    ("other-leading-axes", lambda x, w, b: linear(x.view(-1, 6), w, b).view(x.shape[1], x.shape[0], 5)),
    ("rows-split", lambda x, w, b: linear(x.view(-1, 6), w, b).view(x.shape[0], x.shape[1] * 5)),
    ("columns-regrouped", lambda x, w, b: linear(x.reshape(x.shape[0], -1, 6), w, b).view(x.shape[0], 5, -1)),
    ("two-to-a-row", lambda x, w, b: linear(torch.cat([x, x], -1).view(-1, 6), w, b).view(*x.shape[:2], 10)),
    ("never-restored", lambda x, w, b: linear(x.view(-1, 6), w, b)),
    ("product-read-twice", lambda x, w, b: (y := linear(x.view(-1, 6), w, b)).view(x.shape[0], -1, 5) * y.sum()),
]


def test_is_lifted():
    gm = before("lift_flattening", conv1d, X, w=W, b=B)
    changed, count = after("lift_flattening", gm)
    assert count == 1 and targets(changed) == [aten.linear.default]
    assert_same(gm, changed, X)
    assert_same(gm, changed, torch.randn(5, 1, 6))
    assert edit.info(list(changed.graph.nodes)[-2]).shape[2:] == (5,)


def test_what_lies_between_is_lifted():
    gm = before("lift_flattening", network, X, w=W, b=B)
    changed, count = after("lift_flattening", gm)
    assert count == 2 and aten.reshape.default not in targets(changed)
    assert all(edit.info(node).shape[:2] == (2, 3) for node in changed.graph.nodes if node.target in KEPT)
    assert_same(gm, changed, X)
    assert_same(gm, changed, torch.randn(5, 1, 6))


def test_the_linear_keeps_its_path():
    gm = before("lift_flattening", conv1d, X, w=W, b=B)
    for node in gm.graph.nodes:
        edit.mark(node, path="mlp.c_fc" if node.target is aten.linear.default else "mlp")
    changed, _ = after("lift_flattening", gm)
    assert edit.path_of(list(changed.graph.nodes)[-2]) == "mlp.c_fc"


def test_of_stored_types_sizes_that_may_vary_prove_nothing():
    gm = before("lift_flattening", conv1d, X, w=W, b=B)
    for node in gm.graph.nodes:
        known = edit.info(node)
        node.meta.pop("val", None)
        edit.mark(node, value=known.to_dict() if known else None)
    assert after("lift_flattening", gm)[1] == 0


@pytest.mark.parametrize("function", [each[1] for each in NEAR_MISSES], ids=[each[0] for each in NEAR_MISSES])
def test_stays(function):
    gm = before("lift_flattening", function, torch.randn(5, 4, 6), w=W, b=B)
    changed, count = after("lift_flattening", gm)
    assert count == 0
    assert targets(changed) == targets(gm)


def test_golden():
    check_golden("lift_flattening", story("lift_flattening", before("lift_flattening", conv1d, X, w=W, b=B)))
