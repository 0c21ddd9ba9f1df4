"""Linears on one input become one kernel, equal to the bit; whatever differs keeps them apart."""

import pytest
import torch
from golden import check_golden
from torch import nn
from torch.nn import functional

import fxquant as fxq
from fxquant.graph import edit
from fxquant.graph.text import to_text
from fxquant.passes.lowering import listed_passes
from fxquant.passes.merge_linears import MergeLinears


class Heads(nn.Module):
    """Query, key and value of one input."""

    def __init__(self, widths=(64, 128, 64), biases=(True, True, True), after=None):
        super().__init__()
        torch.manual_seed(0)
        self.heads = nn.ModuleList(nn.Linear(8, n, bias=b) for n, b in zip(widths, biases, strict=True))
        self.after = after or (lambda index, y: y)

    def forward(self, x):
        return tuple(self.after(index, head(x)) for index, head in enumerate(self.heads))


# Packed, it has no zero points; plain, one for all of a weight, which two weights cannot share.
SYMMETRIC = fxq.Recipe(name="symmetric", base="weight-only-int4", specs={"weight": {"symmetric": True}})


def x(seed=0):
    return torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(seed))


def unmerged(model, backend="x86", recipe="dynamic"):
    """Lower without the passes that the backend lists."""
    data = {**fxq.load_backend(backend).to_dict(), "lower": {"passes": []}}
    plain = fxq.backends.read_backend(data, "plain")
    return fxq.quantize(model.eval(), (x(),), backend=plain, recipe=recipe, calibration=[(x(),)], progress=False)


def linears(gm):
    return [node for node in gm.graph.nodes if "linear" in str(node.target) and node.op == "call_function"]


@pytest.mark.parametrize("recipe", ["dynamic", "static", "weight-only", "weight-only-int4", SYMMETRIC])
@pytest.mark.parametrize("backend", ["x86", "reference"])
def test_one_kernel_equal_to_the_bit(backend, recipe):
    gm = unmerged(Heads(), backend, recipe)
    expected = gm(x(1))
    merged = 0 if (backend, recipe) == ("reference", SYMMETRIC) else 2
    assert MergeLinears().apply(gm) == merged
    gm.recompile()
    assert len(linears(gm)) == 3 - merged
    for y, wanted in zip(gm(x(1)), expected, strict=True):
        assert torch.equal(y, wanted)


def test_the_ledger_still_has_every_layer():
    gm = unmerged(Heads())
    before = [(row.op, row.module_path, row.flops, row.kernel) for row in fxq.ledger(gm).rows]
    MergeLinears().apply(gm)
    after = [(row.op, row.module_path, row.flops, row.kernel) for row in fxq.ledger(gm).rows]
    assert after == before
    assert fxq.ledger(gm).coverage == 1.0


def test_compare_still_sees_every_layer():
    graph = fxq.capture(Heads().eval(), (x(),))
    lowered = fxq.lower(fxq.convert(fxq.prepare(graph, "x86", "dynamic")))
    assert len(linears(lowered)) == 1, "x86 lists the pass"
    paths = [row.module_path for row in fxq.compare(graph, lowered, [(x(),)]).rows]
    assert sorted(paths) == ["heads.0", "heads.1", "heads.2"]


NEAR_MISSES = {
    "one has a bias, the others none": Heads(biases=(True, False, False)),
    "one is followed by relu": Heads(after=lambda index, y: y.relu() if index == 0 else y),
    "padding columns in the packed weight": Heads(widths=(60, 64, 64)),
}


@pytest.mark.parametrize("case", NEAR_MISSES)
def test_near_miss_merges_only_the_rest(case):
    gm = unmerged(NEAR_MISSES[case])
    expected = gm(x(1))
    assert MergeLinears().apply(gm) == 1
    gm.recompile()
    assert len(linears(gm)) == 2
    assert all(torch.equal(y, wanted) for y, wanted in zip(gm(x(1)), expected, strict=True))


class Gate(nn.Module):
    """Linears of one input, each followed by an activation or by none; none of them fills its last block."""

    def __init__(self, *activations, bias=False):
        super().__init__()
        torch.manual_seed(0)
        self.activations = activations
        self.parts = nn.ModuleList(nn.Linear(8, 60 + 50 * index, bias=bias) for index in range(len(activations)))

    def forward(self, x):
        return tuple(after(part(x)) for after, part in zip(self.activations, self.parts, strict=True))


GATES = {
    "gate and up": (1, Gate(functional.silu, nn.Identity())),
    "up and gate with biases": (1, Gate(nn.Identity(), functional.gelu, bias=True)),
    "no activation": (1, Gate(nn.Identity(), nn.Identity(), nn.Identity(), bias=True)),
    "the same activation": (1, Gate(torch.relu, torch.relu)),
    "two activations": (2, Gate(functional.silu, nn.Identity(), torch.relu)),
}


@pytest.mark.parametrize("recipe", ["weight-only", "weight-only-int4"])
@pytest.mark.parametrize("case", GATES)
def test_weight_only_kernels_of_any_width_and_activation(case, recipe):
    left, model = GATES[case]
    gm = unmerged(model, recipe=recipe)
    if "columns" not in [argument.name for argument in linears(gm)[0].target._schema.arguments]:
        pytest.skip("the C++ kernels are not available")
    expected, rows = gm(x(1)), fxq.ledger(gm).rows
    assert MergeLinears().apply(gm) == len(expected) - left
    gm.recompile()
    assert len(linears(gm)) == left
    for y, wanted in zip(gm(x(1)), expected, strict=True):
        assert torch.equal(y, wanted)
    assert sorted(row.module_path for row in fxq.ledger(gm).rows) == sorted(row.module_path for row in rows)


def test_other_inputs_are_left_apart():
    class Chain(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            return self.two(self.one(x))

    assert MergeLinears().apply(unmerged(Chain())) == 0


def test_a_merged_graph_is_saved_as_its_layers(tmp_path):
    lowered = fxq.quantize(Heads().eval(), (x(),))
    fxq.save(lowered, tmp_path / "artifact")
    again = fxq.load(tmp_path / "artifact")
    assert all(torch.equal(a, b) for a, b in zip(again(x(1)), lowered(x(1)), strict=True))
    qdq = fxq.load(tmp_path / "artifact", lower=False)
    assert [node.name for node in qdq.graph.nodes if node.target is torch.ops.aten.linear.default] != []
    assert "heads.1.weight_int8" in dict(qdq.named_buffers())


def test_golden():
    gm = unmerged(Heads(), "reference")
    MergeLinears().apply(gm)
    check_golden("merge_linears", to_text(gm))


def test_merged_constants_are_named_after_the_parent():
    gm = unmerged(Heads(), "reference")
    MergeLinears().apply(gm)
    (kernel,) = linears(gm)
    assert edit.path_of(kernel) == "heads"
    assert kernel.args[3].target == "heads.merged_weight"


def test_an_unknown_pass_names_the_file_and_the_nearest():
    with pytest.raises(
        fxq.ConfigError, match=r"mine.toml: \[lower\] passes: unknown lowering pass 'merge_linear': did you"
    ):
        listed_passes(("merge_linear",), "mine.toml")


def test_kernels_of_other_packages_are_left_alone():
    """They need not have the operands by which ours are merged."""
    graph = torch.fx.Graph()
    x, weight = graph.placeholder("x"), graph.placeholder("weight")
    products = [graph.call_function(torch.ops.aten.mm.default, (x, weight)) for _ in range(2)]
    for node in products:
        edit.mark(node, claim={"op": "linear"}, lowered="other.product")
    graph.output(tuple(products))
    assert MergeLinears().apply(torch.fx.GraphModule({}, graph)) == 0
    assert len(graph.find_nodes(op="call_function", target=torch.ops.aten.mm.default)) == 2
