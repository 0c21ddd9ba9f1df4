"""One node for each value, and no two values in one node."""

import torch
from canonical import after, assert_same, before, story, targets
from golden import check_golden
from torch import fx, nn
from torch.nn import functional

from fxquant.graph import edit
from fxquant.passes.canonical_duplicates import MergeDuplicates

aten = torch.ops.aten
X = torch.randn(3, 4)


def test_equal_calls_become_one():
    gm = before("merge_duplicates", lambda x: (x - x.mean(-1, True)) * (x - x.mean(-1, True)), X)
    changed, count = after("merge_duplicates", gm)
    assert count == 2
    assert targets(changed) == [aten.mean.dim, aten.sub.Tensor, aten.mul.Tensor]
    assert_same(gm, changed, X)


def test_literals_that_only_look_equal_differ():
    def function(x):
        return x * 1.5 + 1, x * 1.5 + 1.0, x + True

    gm = before("merge_duplicates", function, X)
    changed, count = after("merge_duplicates", gm)
    assert count == 1 and len(targets(changed)) == 4
    assert_same(gm, changed, X)


def test_lists_and_keywords_are_compared():
    def function(x):
        return torch.cat([x, x], 0), torch.cat([x, x], 1), torch.add(x, x, alpha=2), torch.add(x, x, alpha=3)

    gm = before("merge_duplicates", function, X)
    assert after("merge_duplicates", gm)[1] == 0


def test_random_calls_are_never_merged():
    gm = before("merge_duplicates", lambda x: functional.dropout(x, 0.5) + functional.dropout(x, 0.5), X)
    changed, count = after("merge_duplicates", gm)
    assert count == 0 and targets(changed).count(aten.dropout.default) == 2


def test_where_a_tensor_is_written_to_calls_stay():
    def function(x):
        first, second = torch.zeros(12), torch.zeros(12)
        functional.relu(first.reshape(3, 4).sub_(x), inplace=True)
        return first, second

    gm = before("merge_duplicates", function, X, dynamic=False)
    changed, count = after("merge_duplicates", gm)
    assert count == 0
    assert_same(gm, changed, X)


def two_names(*, tied):
    """Return the sum of a tensor under two names, read in the middle of the graph."""
    root = nn.Module()
    root.a = nn.Parameter(torch.ones(4))
    root.b = root.a if tied else nn.Parameter(torch.ones(4))
    graph = fx.Graph()
    x = graph.placeholder("x")
    first = graph.call_function(aten.add.Tensor, (x, graph.get_attr("a")))
    second = graph.call_function(aten.add.Tensor, (first, graph.get_attr("b")))
    graph.output(graph.call_function(aten.add.Tensor, (second, graph.get_attr("a"))))
    return fx.GraphModule(root, graph)


def test_two_names_of_one_tensor_are_one():
    gm = two_names(tied=True)
    changed, count = after("merge_duplicates", gm)
    assert count == 2
    assert [node.target for node in changed.graph.nodes if node.op == "get_attr"] == ["a"]
    assert not hasattr(changed, "b")
    assert_same(gm, changed, X)


def test_equal_values_in_two_tensors_are_two():
    changed, count = after("merge_duplicates", two_names(tied=False))
    assert count == 1
    assert [node.target for node in changed.graph.nodes if node.op == "get_attr"] == ["a", "b"]


def test_tensors_are_read_first_of_all():
    gm = two_names(tied=False)
    MergeDuplicates().apply(gm)
    operations = [node.op for node in gm.graph.nodes]
    assert operations[:3] == ["get_attr", "get_attr", "placeholder"]
    order = [node.name for node in gm.graph.nodes]
    MergeDuplicates().apply(gm)
    assert [node.name for node in gm.graph.nodes] == order, "a second time nothing moves"


def test_the_first_of_equals_keeps_its_path():
    gm = before("merge_duplicates", lambda x: torch.relu(x) + torch.relu(x), X)
    for position, node in enumerate(node for node in gm.graph.nodes if node.target is aten.relu.default):
        edit.mark(node, path=f"layer.{position}")
    changed, _ = after("merge_duplicates", gm)
    assert [edit.path_of(node) for node in changed.graph.nodes if node.target is aten.relu.default] == ["layer.0"]


def test_golden():
    check_golden("merge_duplicates", story("merge_duplicates", two_names(tied=True)))
