"""An in-place call becomes functional only where nobody can tell the difference."""

import pytest
import torch
from canonical import after, assert_same, before, story, targets
from golden import check_golden
from torch import fx, nn
from torch.nn import functional

from fxquant.passes.base import Pipeline
from fxquant.passes.canonical_arguments import NormalizeArguments
from fxquant.passes.canonical_inplace import Functionalize

aten = torch.ops.aten
X, W = torch.randn(3, 4), torch.randn(5, 4)


def by_hand(build, *inputs):
    """Return the graph that `build(graph, *placeholders)` writes, with the types that a run gives its nodes."""
    graph = fx.Graph()
    placeholders = [graph.placeholder(f"x{index}") for index in range(len(inputs))]
    graph.output(build(graph, *placeholders))
    gm = fx.GraphModule(nn.Module(), graph)
    Pipeline((NormalizeArguments(),)).run(gm)

    class Types(fx.Interpreter):
        def run_node(self, node):
            result = super().run_node(node)
            node.meta["val"] = result.clone() if isinstance(result, torch.Tensor) else result
            return result

    Types(gm).run(*(each.clone() for each in inputs))
    return gm


def chain(*steps):
    """Return a builder that applies (target, other arguments) one after the other to the first input."""

    def build(graph, x, *others):
        for target, *rest in steps:
            x = graph.call_function(target, (x, *(others[0] if each == "y" else each for each in rest)))
        return x

    return build


FRESH = [
    ("relu", chain((aten.neg.default,), (aten.relu_.default,)), aten.relu.default),
    ("scalar-add", chain((aten.neg.default,), (aten.add_.Tensor, 2.0)), aten.add.Tensor),
    ("tensor-add", chain((aten.neg.default,), (aten.add_.Tensor, "y")), aten.add.Tensor),
    ("clamp", chain((aten.neg.default,), (aten.clamp_.default, 0.0, 6.0)), aten.clamp.default),
    ("after-linear", chain((aten.linear.default, "y"), (aten.relu_.default,)), aten.relu.default),
    ("two", chain((aten.neg.default,), (aten.relu_.default,), (aten.mul_.Tensor, 3.0)), aten.mul.Tensor),
]


@pytest.mark.parametrize(("build", "target"), [each[1:] for each in FRESH], ids=[each[0] for each in FRESH])
def test_on_a_fresh_tensor_becomes_functional(build, target):
    inputs = (X, X) if build is not FRESH[4][1] else (X, W)
    gm = by_hand(build, *inputs)
    changed, count = after("functionalize", gm)
    assert count == sum(str(each).split(".")[1].endswith("_") for each in targets(gm))
    assert targets(changed)[-1] is target
    assert_same(gm, changed, *inputs)


def shared(graph, x):
    fresh = graph.call_function(aten.neg.default, (x,))
    written = graph.call_function(aten.relu_.default, (fresh,))
    return graph.call_function(aten.add.Tensor, (written, fresh))


def viewed(graph, x):
    fresh = graph.call_function(aten.neg.default, (x,))
    view = graph.call_function(aten.view.default, (fresh, [12]))
    graph.call_function(aten.relu_.default, (fresh,))
    return view


def test_later_readers_read_the_result():
    gm = by_hand(shared, X)
    changed, count = after("functionalize", gm)
    assert count == 1 and targets(changed) == [aten.neg.default, aten.relu.default, aten.add.Tensor]
    assert_same(gm, changed, X)


def test_earlier_readers_read_the_tensor_as_it_was():
    def build(graph, x):
        fresh = graph.call_function(aten.neg.default, (x,))
        total = graph.call_function(aten.sum.dim_IntList, (fresh, [-1], True))
        return graph.call_function(aten.div_.Tensor, (fresh, total))

    gm = by_hand(build, X)
    changed, count = after("functionalize", gm)
    assert count == 1 and targets(changed)[-1] is aten.div.Tensor
    assert_same(gm, changed, X)


NEAR_MISSES = [
    ("an-input", chain((aten.relu_.default,)), (X,)),
    ("a-view", chain((aten.neg.default,), (aten.reshape.default, [12]), (aten.relu_.default,)), (X,)),
    ("a-strict-view", chain((aten.neg.default,), (aten.view.default, [12]), (aten.relu_.default,)), (X,)),
    ("a-view-elsewhere", viewed, (X,)),
    ("maybe-the-input", chain((aten.dropout.default, 0.5, False), (aten.relu_.default,)), (X,)),
    ("promotion", chain((aten.neg.default,), (aten.mul_.Tensor, "y")), (X, X.double())),
]


@pytest.mark.parametrize(("build", "inputs"), [each[1:] for each in NEAR_MISSES], ids=[each[0] for each in NEAR_MISSES])
def test_where_it_can_be_seen_it_stays(build, inputs):
    gm = by_hand(build, *inputs)
    changed, count = after("functionalize", gm)
    assert count == 0 and targets(changed) == targets(gm)


def test_without_types_nothing_is_proven():
    gm = by_hand(chain((aten.neg.default,), (aten.relu_.default,)), X)
    for node in gm.graph.nodes:
        node.meta.clear()
    assert Functionalize().apply(gm) == 0


def test_an_inplace_activation_of_a_model():
    gm = before("functionalize", lambda x, w: functional.relu(functional.linear(x, w), inplace=True), X, w=W)
    assert aten.relu_.default in targets(gm)
    changed, _ = after("functionalize", gm)
    assert targets(changed) == [aten.linear.default, aten.relu.default]
    assert_same(gm, changed, X)


def test_golden():
    check_golden("functionalize", story("functionalize", by_hand(FRESH[1][1], X)))
