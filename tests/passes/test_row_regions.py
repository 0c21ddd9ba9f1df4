"""Regions are connected, on the same rows, and no value goes out of one and back in."""

import pytest
import torch
from graphs import Call, canonical_graph, lowered_graph
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx, nn
from torch.nn import functional

from fxquant.graph import edit
from fxquant.graph.edit import TensorInfo
from fxquant.kernels.cpu import native
from fxquant.passes.fuse_rows import FuseRows
from fxquant.passes.row_regions import regions
from fxquant.passes.row_steps import read_step

aten = torch.ops.aten


def x(*shape, seed=0):
    return torch.randn(shape or (2, 5, 8), generator=torch.Generator().manual_seed(seed))


def norm(value):
    return functional.layer_norm(value, (8,))


def kinds(gm):
    """The kinds of the steps of each region."""
    return [[read_step(node).kind for node in region] for region in regions(gm)]


def found(function, *inputs):
    return kinds(canonical_graph(Call(function), *inputs))


def test_a_chain_is_one_region():
    assert found(lambda x, y: norm(norm(x + y) * x), x(), x()) == [["add", "norm", "multiply", "norm"]]


def test_one_op_alone_is_none():
    assert found(lambda x, y: (x + y).relu(), x(), x()) == []


def test_chains_apart_are_regions_apart():
    assert found(lambda x, y: (norm(x * x), norm(y + y)), x(), x()) == [["multiply", "norm"], ["add", "norm"]]


def test_chains_that_meet_are_one():
    assert found(lambda x, y: norm(x * x) + norm(y + y), x(), x()) == [["multiply", "norm", "add", "norm", "add"]]


def test_a_way_out_and_back_in_ends_a_region():
    def function(x, y):
        a = norm(x + y)
        b = a.flip(1)  # mixes rows
        return norm(a + b) * a

    assert found(function, x(), x()) == [["add", "norm"], ["add", "norm", "multiply"]]


def test_what_does_not_wait_for_the_way_out_stays_in():
    def function(x, y):
        a = x + y
        return norm(a * x), a + a.flip(1)

    assert found(function, x(), x()) == [["add", "multiply", "norm"]]


def test_results_on_the_way_may_be_read_outside():
    def function(x, y):
        a = x + y
        return a.flip(1), norm(a)

    assert found(function, x(), x()) == [["add", "norm"]]


def test_other_rows_are_another_region():
    def function(x, y):
        short = norm(y + y)
        return norm(x + short) * x

    assert found(function, x(), x(1, 5, 8)) == [["add", "norm"], ["add", "norm", "multiply"]]


def test_a_smaller_operand_repeats_or_is_no_step():
    def function(x, y):
        return norm((x + y) * x)

    assert found(function, x(), x(1, 5, 8)) == [["add", "multiply", "norm"]]
    assert found(function, x(), x(8)) == [["add", "multiply", "norm"]]
    assert found(function, x(), x(2, 1, 8)) == [["multiply", "norm"]], "not a repeat as a whole"


def test_both_operands_smaller_than_the_result():
    assert found(lambda x, y: norm((x + y) * 1.5 + x), x(2, 1, 8), x(5, 8)) == []


def test_a_reshape_parts_regions():
    def function(x, y):
        a = norm(x + y)
        return norm(a.reshape(10, 8) * 1.0 + y.reshape(10, 8))

    assert found(function, x(), x()) == [["add", "norm"], ["add", "norm"]]


class Layers(nn.Module):
    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.words, self.places = (
            nn.Linear(8, 8),
            nn.Linear(8, 8),
            nn.Embedding(11, 8),
            nn.Embedding(11, 8),
        )
        self.function = function

    def forward(self, *inputs):
        return self.function(self, *inputs)


def lowered(function, *inputs, recipe="static"):
    if not native.available():
        pytest.skip("the steps are the C++ kernels' ops")
    return lowered_graph(Layers(function), *inputs, recipe=recipe)


def test_bytes_stay_inside():
    gm = lowered(lambda m, x: m.second(m.first(x).relu()) + x, x())
    assert kinds(gm) == [["quantize", "linear_bytes", "linear_bytes"]]


def test_bytes_that_leave_a_region_keep_their_maker_out():
    gm = lowered(lambda m, x: m.second(norm(x + x).transpose(0, 1)), x())
    assert kinds(gm) == [["add", "norm"]]
    targets = [str(node.target) for node in gm.graph.nodes]
    assert targets.index("fxquant.quantize_static.default") < targets.index("aten.transpose.int")


def test_bytes_that_are_read_inside_and_outside_stay_out():
    gm = lowered(lambda m, x: m.second(m.first(x).relu()) + x, x())
    first = next(node for node in gm.graph.nodes if "packed_linear" in str(node.target))
    with gm.graph.inserting_after(first):
        gm.graph.call_function(aten.flip.default, (first, [0]))
    assert kinds(gm) == [], "neither it, nor who reads it, nor who makes bytes for it"


def test_columns_stay_inside():
    def gated(x):
        y = norm(x + x)
        return y[..., :4] * y[..., 4:]

    def shown(x):
        y = norm(x + x)
        return y[..., :4] * y[..., 4:], y[..., :4]

    assert found(gated, x()) == [["add", "norm", "columns", "columns", "multiply"]]
    assert found(shown, x()) == [["add", "norm"]], "columns that are read outside are a view there"
    assert found(lambda x: x[..., :4] * x[..., 4:], x()) == [], "and so are those of an input"


def test_look_ups_that_all_rows_share():
    ids = torch.randint(0, 11, (3, 5))
    gm = lowered(lambda m, ids: norm(m.words(ids) + m.places(torch.arange(ids.shape[1])[None])), ids, recipe="dynamic")
    assert kinds(gm) == [["embedding", "embedding", "add", "norm"]]


def test_a_shared_look_up_that_something_else_reads_too_is_apart():
    def function(m, ids):
        places = m.places(torch.arange(ids.shape[1])[None])
        return norm(m.words(ids) + places), places.flip(1)

    gm = lowered(function, torch.randint(0, 11, (3, 5)), recipe="dynamic")
    assert kinds(gm) == [["add", "norm"]], "the words' look-up stands before the other's end"


# ── any graph ─────────────────────────────────────────────────────────────────────────────────────────────────────

SHAPES = [(3, 4, 6), (4, 6), (1, 4, 6), (3, 1, 6)]


def random_graph(data):
    """Sums, products, norms and flips on a few inputs, as a graph by hand."""
    graph = fx.Graph()
    nodes, shapes = [], {}

    def add(node, shape):
        edit.mark(node, value=TensorInfo(torch.float32, tuple(shape), (False,) * len(shape)).to_dict())
        shapes[node] = tuple(shape)
        nodes.append(node)

    for index, shape in enumerate(SHAPES):
        add(graph.placeholder(f"x{index}"), shape)
    for kind in data.draw(st.lists(st.sampled_from(["add", "add", "mul", "norm", "flip"]), min_size=4, max_size=16)):
        first = data.draw(st.sampled_from(nodes[-6:]))
        if kind == "norm":
            add(graph.call_function(aten.layer_norm.default, (first, [6], None, None, 1e-5, True)), shapes[first])
        elif kind == "flip":
            add(graph.call_function(aten.flip.default, (first, [-2])), shapes[first])
        else:
            second = data.draw(st.sampled_from(nodes))
            op = aten.add.Tensor if kind == "add" else aten.mul.Tensor
            kwargs = {"alpha": 1} if kind == "add" else {}
            add(
                graph.call_function(op, (first, second), kwargs),
                torch.broadcast_shapes(shapes[first], shapes[second]),
            )
    results = data.draw(st.lists(st.sampled_from(nodes[len(SHAPES) :]), min_size=1, max_size=4, unique=True))
    graph.output((*results, nodes[-1]))
    return fx.GraphModule(nn.Module(), graph)


def reaches(start, targets, inside):
    """Say whether a way from `start` through nodes outside `inside` ends at one of `targets`."""
    waiting, seen = [user for user in start.users if user not in inside], set()
    while waiting:
        node = waiting.pop()
        for user in node.users:
            if user in targets:
                return True
            if user not in seen:
                seen.add(user)
                waiting.append(user)
    return False


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_regions_of_any_graph_are_apart_and_have_no_way_out_and_back(data):
    gm = random_graph(data)
    parts = regions(gm)
    members = [node for region in parts for node in region]
    assert len(members) == len(set(members))
    for region in parts:
        inside = set(region)
        assert len(inside) > 1
        assert not any(reaches(node, inside, inside) for node in region)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_fusing_any_graph_keeps_its_results(data):
    if not native.available():
        pytest.skip("without compiled kernels nothing is fused")
    gm = random_graph(data)
    inputs = [x(*shape, seed=seed) for seed, shape in enumerate(SHAPES)]
    expected = gm(*inputs)
    parts = regions(gm)
    assert FuseRows().apply(gm) == sum(len(region) - 1 for region in parts)
    gm.graph.lint()
    gm.recompile()
    assert sum("row_program" in str(node.target) for node in gm.graph.nodes) <= len(parts), "dead regions are swept"
    for y, wanted in zip(gm(*inputs), expected, strict=True):
        torch.testing.assert_close(y, wanted, rtol=1e-3, atol=1e-4)
