"""Norms and the quantization behind them become one kernel; other readers of a norm go on reading it."""

import pytest
import torch
from golden import check_golden
from graphs import applied, lowered_graph
from torch import nn
from torch.nn import functional

import fxquant as fxq
from fxquant.graph.text import to_text
from fxquant.passes.fuse_norm_quantize import FUSED, FuseNormQuantize

WIDTH = 32
aten = torch.ops.aten


class Normed(nn.Module):
    """A linear of a norm; `carried`: with the norm added to it."""

    def __init__(self, norm="layer", carried=False):
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.LayerNorm(WIDTH) if norm == "layer" else nn.RMSNorm(WIDTH, eps=None if norm == "rms" else 1e-5)
        self.linear, self.carried = nn.Linear(WIDTH, WIDTH), carried

    def forward(self, x):
        y = self.norm(x * 2)
        return y + functional.relu(self.linear(y)) if self.carried else self.linear(y)


def x(*shape, seed=0):
    return torch.randn(*(shape or (2, 5, WIDTH)), generator=torch.Generator().manual_seed(seed))


def lowered(model, recipe="dynamic"):
    return lowered_graph(model, x(), recipe=recipe, backend="cuda", passes=["sink_quantize"])


def kernels(gm):
    return [node for node in gm.graph.nodes if node.target in FUSED.values()]


def fused(gm):
    """Return the graph behind the pass, which must give the same numbers, and how much it changed."""
    after, count = applied(gm, FuseNormQuantize())
    with torch.no_grad():
        for shape in ((2, 5, WIDTH), (3, 1, WIDTH)):
            torch.testing.assert_close(after(x(*shape, seed=1)), gm(x(*shape, seed=1)), rtol=0, atol=0)
    return after, count


@pytest.mark.parametrize("recipe", ["dynamic", "static"])
def test_golden(recipe):
    gm = lowered(Normed(carried=True), recipe)
    before = to_text(gm)
    after, count = fused(gm)
    assert count == 1
    check_golden(f"fuse_norm_quantize_{recipe}", f"before fuse_norm_quantize:\n{before}\nafter:\n{to_text(after)}")


@pytest.mark.parametrize("recipe", ["dynamic", "static"])
@pytest.mark.parametrize("norm", ["layer", "rms", "rms with epsilon"])
def test_norms_that_nothing_else_reads(norm, recipe):
    after, count = fused(lowered(Normed(norm), recipe))
    assert count == len(kernels(after)) == 1
    assert kernels(after)[0].args[-1] is False, "nothing but the integers is kept"
    assert not {aten.layer_norm.default, aten.rms_norm.default} & {node.target for node in after.graph.nodes}


@pytest.mark.parametrize("recipe", ["dynamic", "static"])
def test_a_norm_that_is_carried_on_is_kept(recipe):
    after, _ = fused(lowered(Normed(carried=True), recipe))
    (kernel,) = kernels(after)
    assert kernel.args[-1] is True


class Two(nn.Module):
    """Two linears of one norm, of which the second reads it at other places."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.first, self.second = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 8), nn.Linear(WIDTH, 8)

    def forward(self, x):
        y = self.norm(x)
        return self.first(y) + self.second(y.flip(1))


def test_a_norm_of_two_quantizations_is_joined_with_one():
    after, count = fused(lowered(Two()))
    assert count == len(kernels(after)) == 1
    assert len(after.graph.find_nodes(op="call_function", target=torch.ops.fxquant.quantize_rows.default)) == 1


class Function(nn.Module):
    """A linear of what a function makes of x."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.function = nn.Linear(WIDTH, 8), function

    def forward(self, x):
        return self.linear(self.function(x))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: functional.layer_norm(x, x.shape[1:]),
        lambda x: functional.layer_norm(x, (WIDTH,), weight=x[0, 0]),
        lambda x: functional.layer_norm(x, (WIDTH,)).relu(),
        lambda x: torch.softmax(x, -1),
    ],
    ids=["over two axes", "a weight that is computed", "an activation in between", "softmax"],
)
def test_near_misses(function):
    gm = lowered_graph(Function(function), x(), backend="cuda")
    before = to_text(gm)
    assert FuseNormQuantize().apply(gm) == 0
    assert to_text(gm) == before


def test_the_ledger_goes_on_telling_of_the_norm():
    gm = lowered(Normed())
    after, _ = fused(gm)
    rows = [[(row.op, row.module_path, row.reason) for row in fxq.ledger(each).rows] for each in (gm, after)]
    assert sorted(map(str, rows[0])) == sorted(map(str, rows[1]))
