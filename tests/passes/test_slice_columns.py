"""Items of splits along the last axis become slices; other splits stay."""

import pytest
import torch
from golden import check_golden
from graphs import Call, applied, canonical_graph, nodes

from fxquant.graph.text import to_text
from fxquant.passes.slice_columns import SliceColumns

aten = torch.ops.aten
X = torch.randn(2, 3, 10)
SPLITS = {
    "chunk": lambda x: x.chunk(2, -1),
    "a shorter last chunk": lambda x: x.chunk(3, dim=2),
    "fewer chunks than asked for": lambda x: x.chunk(8, -1),
    "split": lambda x: x.split(3, -1),
    "split by sizes": lambda x: x.split([1, 7, 2], 2),
}
NEAR_MISSES = {
    "positions": lambda x: x.chunk(3, 1),
    "largest and where": lambda x: tuple(x.max(-1)),
}


@pytest.mark.parametrize("case", SPLITS)
def test_items_are_slices(case):
    before = canonical_graph(Call(SPLITS[case]), X)
    after, count = applied(before, SliceColumns())
    assert count == len(nodes(after, aten.slice.Tensor)) == len(SPLITS[case](X))
    assert {node.target for node in after.graph.nodes if node.op == "call_function"} == {aten.slice.Tensor}
    for found, expected in zip(after(X), before(X), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("case", NEAR_MISSES)
def test_near_miss(case):
    assert applied(canonical_graph(Call(NEAR_MISSES[case]), X), SliceColumns())[1] == 0


def test_golden():
    before = canonical_graph(Call(lambda x: (x.chunk(2, -1)[0] * 2, x.split([4, 6], -1)[1])), X)
    after, _ = applied(before, SliceColumns())
    check_golden("slice_columns", f"before slice_columns:\n{to_text(before)}\nafter:\n{to_text(after)}")
