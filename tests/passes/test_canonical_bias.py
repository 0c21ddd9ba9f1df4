"""A constant vector added to a bias-less linear becomes its bias; nothing else does."""

import pytest
import torch
from canonical import after, assert_same, before, story, targets
from golden import check_golden
from torch.nn.functional import linear

from fxquant.graph import edit

aten = torch.ops.aten
X, W, B = torch.randn(2, 3, 6), torch.randn(5, 6), torch.randn(5)

FOLDED = [
    ("right", lambda x, w, b: linear(x, w) + b),
    ("left", lambda x, w, b: b + linear(x, w)),
    ("through-a-reshape", lambda x, w, b: linear(x.reshape(-1, 6), w).reshape(x.shape[0], x.shape[1], 5) + b),
]
NEAR_MISSES = [
    ("has-a-bias", lambda x, w, b: linear(x, w, b) + b),
    ("product-read-twice", lambda x, w, b: torch.relu(y := linear(x, w)) * (y + b)),
    ("scaled", lambda x, w, b: torch.add(linear(x, w), b, alpha=2)),
    ("one-for-all", lambda x, w, b: linear(x, w) + b[0]),
    ("computed", lambda x, w, b: linear(x, w) + b * x.sum()),
    ("matrix", lambda x, w, b: linear(x, w) + b.reshape(1, 5)),
    ("a-reshape-that-splits-rows", lambda x, w, b: linear(x, w).reshape(x.shape[0], 5, x.shape[1]).transpose(1, 2) + b),
    ("activation-between", lambda x, w, b: torch.relu(linear(x, w)) + b),
    ("broadcast-of-the-product", lambda x, w, b: linear(x[:, :, :], w[:1]) + b),
]


@pytest.mark.parametrize("function", [each[1] for each in FOLDED], ids=[each[0] for each in FOLDED])
def test_is_folded(function):
    gm = before("fold_bias", function, X, w=W, b=B)
    changed, count = after("fold_bias", gm)
    assert count == 1
    assert aten.add.Tensor not in targets(changed)
    folded = next(node for node in changed.graph.nodes if node.target is aten.linear.default)
    assert edit.get_tensor(changed, folded.args[2]) is gm.b
    assert_same(gm, changed, X, units=2)


@pytest.mark.parametrize("function", [each[1] for each in NEAR_MISSES], ids=[each[0] for each in NEAR_MISSES])
def test_stays(function):
    gm = before("fold_bias", function, X, w=W, b=B)
    changed, count = after("fold_bias", gm)
    assert count == 0
    assert_same(gm, changed, X)


def test_a_constant_of_one_row_is_a_bias():
    gm = before("fold_bias", lambda x, w, b: linear(x, w) + b, X, w=W, b=B[None])
    changed, count = after("fold_bias", gm)
    folded = next(node for node in changed.graph.nodes if node.target is aten.linear.default)
    assert count == 1 and edit.get_tensor(changed, folded.args[2]).shape == (5,)
    assert_same(gm, changed, X, units=2)


def test_a_promoting_addition_stays():
    gm = before("fold_bias", lambda x, w, b: linear(x, w) + b, X, w=W, b=B)
    constant = next(node for node in gm.graph.nodes if node.target == "b")
    addition = next(node for node in gm.graph.nodes if node.target is aten.add.Tensor)
    constant.meta["val"], addition.meta["val"] = constant.meta["val"].double(), addition.meta["val"].double()
    assert after("fold_bias", gm)[1] == 0


def test_golden():
    gm = before("fold_bias", FOLDED[2][1], X, w=W, b=B)
    check_golden("fold_bias", story("fold_bias", gm))
