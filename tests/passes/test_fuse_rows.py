"""Regions become one kernel each: the same results, the same ledger, any sizes."""

import copy

import models
import pytest
import torch
from captured import captured, converted
from captured import lowered as lowered_model
from golden import check_golden
from graphs import Call, canonical_graph, lowered_graph
from torch import nn
from torch.nn import functional

import fxquant as fxq
from fxquant.graph import edit
from fxquant.graph.text import to_text
from fxquant.kernels.cpu import native
from fxquant.passes.fuse_rows import ROW_PROGRAM, FuseRows
from fxquant.passes.row_regions import regions

aten = torch.ops.aten


@pytest.fixture(autouse=True)
def own_kernels():
    if not native.available():
        pytest.skip("the C++ kernels are not available")


class Block(nn.Module):
    """What lies between two attentions of an encoder."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.out, self.up, self.down, self.query = (
            nn.Linear(8, 8),
            nn.Linear(8, 16),
            nn.Linear(16, 8),
            nn.Linear(8, 8),
        )
        self.norm = nn.ModuleList(nn.LayerNorm(8) for _ in range(2))

    def forward(self, context, hidden):
        hidden = self.norm[0](self.out(context) + hidden)
        hidden = self.norm[1](self.down(functional.gelu(self.up(hidden))) + hidden)
        return hidden, self.query(hidden)


def x(*shape, seed=0):
    return torch.randn(shape or (2, 5, 8), generator=torch.Generator().manual_seed(seed))


def block(recipe="dynamic", passes=()):
    return lowered_graph(Block(), x(), x(seed=1), recipe=recipe, passes=passes)


def fused(gm):
    return [node for node in gm.graph.nodes if node.target is ROW_PROGRAM]


@pytest.mark.parametrize("recipe", ["dynamic", "static"])
def test_golden(recipe):
    gm = block(recipe)
    FuseRows().apply(gm)
    check_golden(f"fuse_rows_{recipe}", to_text(gm))


@pytest.mark.parametrize("recipe", ["dynamic", "static", "weight-only"])
def test_results_are_those_before(recipe):
    gm = block(recipe)
    inputs = [(x(), x(seed=1)), (x(1, 1, 8), x(1, 1, 8)), (x(7, 30, 8), x(7, 30, 8, seed=2)), (x(0, 3, 8), x(0, 3, 8))]
    expected = [gm(*each) for each in inputs]
    count = len(gm.graph.nodes)
    assert FuseRows().apply(gm) > 0 or recipe == "weight-only"
    gm.graph.lint()
    gm.recompile()
    assert len(gm.graph.nodes) < count or recipe == "weight-only"
    for each, wanted in zip(inputs, expected, strict=True):
        for y, before in zip(gm(*each), wanted, strict=True):
            assert y.shape == before.shape
            torch.testing.assert_close(y, before, atol=2e-2, rtol=1e-2)


def test_a_second_time_there_is_nothing_to_do():
    gm = block()
    assert FuseRows().apply(gm) == 5
    assert len(fused(gm)) == 1
    before = to_text(gm)
    assert FuseRows().apply(gm) == 0
    assert to_text(gm) == before


@pytest.mark.parametrize(("name", "recipe"), [("bert", "static"), ("t5", "dynamic"), ("llama", "dynamic")])
def test_the_ledger_tells_of_the_same_ops(name, recipe):
    data = {**fxq.load_backend("x86").to_dict(), "lower": {"passes": ["merge_linears"]}}
    gm = fxq.lower(converted(name, recipe), fxq.backends.read_backend(data, "plain"))
    before = fxq.ledger(gm)
    assert FuseRows().apply(gm) > 0
    after = fxq.ledger(gm)

    def told(ledger):
        return sorted(
            (row.op, row.module_path, str(row.family), row.flops, row.dtype, row.code, row.reason)
            for row in ledger.rows
        )

    assert told(after) == told(before)
    assert after.coverage == before.coverage
    assert after.summary() == before.summary()


def test_a_row_names_the_fused_kernel_and_its_own():
    gm = block()
    FuseRows().apply(gm)
    kernels = {(row.op, row.module_path): row.kernel for row in fxq.ledger(gm).rows}
    host = "fxquant.row_program"
    assert kernels["linear_gelu", "up"] == f"{host}: packed_linear_dynamic_int8"
    assert kernels["aten.layer_norm", "norm.1"] == host
    assert all(row.node == fused(gm)[0].name for row in fxq.ledger(gm).rows)


def test_a_fused_kernel_lies_where_all_its_ops_do():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = Block()

        def forward(self, context, hidden):
            return self.layer(context, hidden)

    gm = lowered_graph(Outer(), x(), x(seed=1), passes=["fuse_rows"])
    assert [edit.path_of(node) for node in fused(gm)] == ["layer"]
    assert [edit.path_of(node) for node in fused(block(passes=["fuse_rows"]))] == [""]


def test_readers_of_early_results_move_behind_the_kernel():
    def function(a, b):
        total = a + b
        return total.flip(0), functional.layer_norm(total * a, (8,))

    gm = canonical_graph(Call(function), x(), x(seed=1))
    expected = gm(x(), x(seed=1))
    assert FuseRows().apply(gm) == 2
    gm.graph.lint()
    gm.recompile()
    order = [node.target for node in gm.graph.nodes if node.op == "call_function"]
    assert order.index(ROW_PROGRAM) < order.index(aten.flip.default)
    flipped, normed = gm(x(), x(seed=1))
    assert torch.equal(flipped, expected[0])
    torch.testing.assert_close(normed, expected[1])


def test_two_regions_that_read_each_other_in_turn():
    def function(a, b):
        first = (a + b) * a
        second = (b.flip(0) * b.flip(0)) + b.flip(0)
        return (first + second.flip(0)) * first, (second * first.flip(0)) + second

    gm = canonical_graph(Call(function), x(), x(seed=1))
    expected = gm(x(), x(seed=1))
    assert len(regions(gm)) == 4
    FuseRows().apply(gm)
    gm.graph.lint()
    gm.recompile()
    assert all(torch.equal(y, wanted) for y, wanted in zip(gm(x(), x(seed=1)), expected, strict=True))


def test_what_a_user_asked_for_stays_an_output():
    gm = canonical_graph(Call(lambda a, b: (a + b, (a + b) * a, a)), x(), x(seed=1))
    expected = gm(x(), x(seed=1))
    FuseRows().apply(gm)
    gm.recompile()
    assert all(torch.equal(y, wanted) for y, wanted in zip(gm(x(), x(seed=1)), expected, strict=True))


def test_shapes_are_known_after_fusing():
    gm = block(passes=["fuse_rows"])
    (output,) = (node for node in gm.graph.nodes if node.op == "output")
    for node in output.all_input_nodes:
        known = edit.info(node)
        assert known.shape == (2, 5, 8)
        assert known.dynamic == (True, True, False)


def test_without_compiled_kernels_nothing_is_fused(monkeypatch):
    gm = block()
    monkeypatch.setattr(native, "available", lambda: False)
    before = to_text(gm)
    assert FuseRows().apply(gm) == 0
    assert to_text(gm) == before


@pytest.mark.parametrize("recipe", ["dynamic", "static"])
def test_saved_loaded_and_copied(tmp_path, recipe):
    inputs, lowered = captured("bert")[1], lowered_model("bert", recipe)
    assert fused(lowered)
    fxq.save(lowered, tmp_path / "artifact")
    again = fxq.load(tmp_path / "artifact")
    assert [node.args[2] for node in fused(again)] == [node.args[2] for node in fused(lowered)]
    for copied in (again, copy.deepcopy(lowered), edit.clone(lowered)):
        assert torch.equal(copied(**inputs)[0], lowered(**inputs)[0])
        assert fxq.ledger(copied) == fxq.ledger(lowered)


@pytest.mark.parametrize("name", ["bert", "t5", "gpt2"])
def test_other_sizes_than_the_examples(name):
    lowered = lowered_model(name)
    apart = fxq.stages.unfused(lowered)
    make = models.seq2seq_inputs if name == "t5" else models.encoder_inputs
    for batch, sequence in ((1, 1), (1, 7), (5, 1), (3, 30)):
        others = make(batch, sequence, seed=3)
        with torch.no_grad():
            ours, theirs = lowered(**others)[0], apart(**others)[0]
        assert functional.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) > 0.995


@pytest.mark.parametrize("shape", [(1, 12), (1, 1), (3, 1), (4, 4)], ids=str)
def test_sizes_that_are_equal_or_one_in_the_example_are_not_taken_for_each_other(shape):
    model, _ = models.distilbert()
    lowered = fxq.quantize(model, models.encoder_inputs(*shape))
    apart = fxq.stages.unfused(lowered)
    assert fused(lowered)
    others = models.encoder_inputs(3, 7, seed=3)
    with torch.no_grad():
        ours, theirs = lowered(**others)[0], apart(**others)[0]
    assert functional.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) > 0.995


def test_tensors_of_a_model_lie_in_any_order():
    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.norm, self.linear = nn.Embedding(6, 16), nn.LayerNorm(16), nn.Linear(16, 16)
            self.words.weight = nn.Parameter(torch.randn(16, 6).t())
            self.norm.weight, self.linear.bias = (nn.Parameter(torch.randn(16, 2)[:, i]) for i in (0, 1))

        def forward(self, ids):
            return self.norm(self.linear(self.words(ids)))

    model, ids = Turned().eval(), torch.arange(6)[None]
    gm = fxq.quantize(model, (ids,), backend="x86")
    assert fused(gm)
    with torch.no_grad():
        torch.testing.assert_close(gm(ids), model(ids), rtol=0, atol=0.05)
