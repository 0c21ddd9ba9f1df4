"""A gate and its up become one kernel; what only looks like them stays as it is."""

import pytest
import torch
from golden import check_golden
from graphs import applied, lowered_graph
from torch import nn
from torch.nn import functional

import fxquant as fxq
from fxquant.backends import read_backend
from fxquant.graph import edit
from fxquant.graph.text import to_text
from fxquant.passes.fuse_gates import GATED, GEMM, FuseGates

WIDTH, HIDDEN = 32, 48


class Gated(nn.Module):
    """down(activation(gate(x))·up(x)), or what else `combine` makes of the two linears."""

    def __init__(self, combine=lambda gate, up: functional.silu(gate) * up, bias=(False, False), widths=(HIDDEN,) * 2):
        super().__init__()
        torch.manual_seed(0)
        self.gate, self.up = (nn.Linear(WIDTH, width, has) for width, has in zip(widths, bias, strict=True))
        self.down, self.combine = nn.Linear(HIDDEN, WIDTH, bias=False), combine

    def forward(self, x):
        return self.down(self.combine(self.gate(x), self.up(x)))


def x(*shape, seed=0):
    return torch.randn(*(shape or (2, 5, WIDTH)), generator=torch.Generator().manual_seed(seed))


def lowered(model, recipe="dynamic", passes=("merge_linears",)):
    return lowered_graph(model, x(), recipe=recipe, backend="cuda", passes=passes)


def called(gm, target):
    return gm.graph.find_nodes(op="call_function", target=target)


def results(gm, *shape):
    with torch.no_grad():
        return gm(x(*shape, seed=1))


def fused(gm):
    """Return the graph behind the pass, which must give the same numbers, and how much it changed."""
    after, count = applied(gm, FuseGates())
    for shape in ((2, 5, WIDTH), (3, 1, WIDTH)):
        torch.testing.assert_close(results(after, *shape), results(gm, *shape), rtol=1e-6, atol=1e-6)
    return after, count


@pytest.mark.parametrize("recipe", ["dynamic", "static"])
def test_golden(recipe):
    gm = lowered(Gated(), recipe)
    before = to_text(gm)
    after, count = fused(gm)
    assert count == 1
    check_golden(f"fuse_gates_{recipe}", f"before fuse_gates:\n{before}\nafter:\n{to_text(after)}")


@pytest.mark.parametrize(
    "combine",
    [
        lambda gate, up: up * functional.silu(gate),
        lambda gate, up: functional.gelu(gate) * up,
        lambda gate, up: functional.gelu(gate, approximate="tanh") * up,
        lambda gate, up: torch.relu(gate) * up,
        lambda gate, up: gate * functional.silu(up),
    ],
    ids=["up first", "gelu", "gelu by tanh", "relu", "the second activated"],
)
def test_gates(combine):
    after, count = fused(lowered(Gated(combine, bias=(True, True))))
    assert count == len(called(after, GATED)) == 1
    assert len(called(after, GEMM)) == 1, "the down projection is left"


def test_a_gate_without_activation():
    """Listed in the usual order, `merge_linears` has made one of the two before."""
    model = Gated(lambda gate, up: gate * up)
    assert fused(lowered(model, passes=()))[1] == 1
    assert fused(lowered(model))[1] == 0


@pytest.mark.parametrize(
    "model",
    [
        Gated(lambda gate, up: functional.silu(gate) + up),
        Gated(lambda gate, up: functional.silu(gate) * functional.silu(up)),
        Gated(lambda gate, up: functional.silu(gate) * up + up),
        Gated(lambda gate, up: torch.tanh(gate) * up),
        Gated(lambda gate, up: functional.silu(gate).square() * up.mean(-1, keepdim=True)),
        Gated(bias=(True, False)),
        Gated(lambda gate, up: functional.silu(gate) * up[..., :1], widths=(HIDDEN, 16)),
    ],
    ids=["a sum", "both activated", "up read twice", "tanh", "a mean", "one bias", "other widths"],
)
def test_near_misses(model):
    gm = lowered(model)
    before = to_text(gm)
    after, count = fused(gm)
    assert count == 0
    assert to_text(after) == before


def test_linears_of_other_rows_stay_apart():
    class Crossed(Gated):
        def forward(self, x):
            return self.down(functional.silu(self.gate(x)) * self.up(x.flip(1)))

    assert fused(lowered(Crossed()))[1] == 0


def test_the_ledger_goes_on_telling_of_both_linears():
    gm = lowered(Gated())
    after, _ = fused(gm)
    rows = [[(row.op, row.module_path, row.reason) for row in fxq.ledger(each).rows] for each in (gm, after)]
    assert sorted(map(str, rows[0])) == sorted(map(str, rows[1]))


def test_weights_come_back_out_of_the_joined_one(tmp_path):
    data = {**fxq.load_backend("cuda").to_dict(), "lower": {"passes": ["fuse_gates"]}}
    model = Gated(widths=(HIDDEN,) * 2).eval()
    with torch.no_grad():
        gm = fxq.quantize(model, (x(),), backend=read_backend(data, "test"))
    assert called(gm, GATED)
    plain = [name for name in edit.constants(gm) if name in ("gate.weight_int8", "up.weight_int8")]
    assert not plain, "they are held once"
    fxq.save(gm, tmp_path / "artifact")
    again = fxq.load(tmp_path / "artifact")
    assert torch.equal(results(again), results(gm))
