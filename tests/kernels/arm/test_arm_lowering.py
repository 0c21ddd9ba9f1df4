"""The arm backend on any machine: the same graphs as on ARM, and the stand-ins where the C++ kernels are off."""

import pytest
import torch
from golden import check_golden
from torch import nn

import fxquant as fxq
from fxquant.graph.text import to_text
from fxquant.kernels.cpu import native

RECIPES = ["dynamic", "dynamic-per-tensor", "static", "weight-only", "weight-only-int4"]
KERNELS = {
    ("portable", "dynamic"): ["linear_int8", "linear_int8"],
    ("portable", "static"): ["linear_int8", "linear_int8"],
    ("portable", "weight-only"): ["linear_weight_int8", "linear_weight_int8"],
    ("qnnpack", "dynamic"): ["linear_int8", "linear_int8"],  # one scale a token is not the engine's
    ("qnnpack", "dynamic-per-tensor"): ["qnnpack_linear_dynamic_int8", "qnnpack_linear_dynamic_int8"],
    ("qnnpack", "static"): ["qnnpack_linear_int8", "linear_int8"],  # it has no float results of integer activations
    ("qnnpack", "weight-only"): ["linear_weight_int8", "linear_weight_int8"],
}


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(20, 40), nn.Linear(40, 12)

    def forward(self, x):
        return self.down(torch.relu(self.up(x)))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Mlp().eval()


def x(seed=0):
    return torch.randn(6, 20, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def quantized(model):
    """Return a function that gives the Q/DQ graph of the model under a recipe."""
    graph, made = fxq.capture(model, (x(),)), {}

    def under(recipe):
        if recipe not in made:
            ready = fxq.prepare(graph, "arm", recipe)
            if recipe == "static":
                fxq.calibrate(ready, [(x(),)], progress=False)
            made[recipe] = fxq.convert(ready)
        return made[recipe]

    return under


def kernels(lowered):
    return [row.kernel for row in fxq.ledger(lowered).rows if row.family]


@pytest.mark.parametrize(("name", "recipe"), KERNELS, ids=[f"{name}-{recipe}" for name, recipe in KERNELS])
def test_the_ledger_names_what_stands_in(quantized, stand_in, name, recipe):
    stand_in(name)
    qdq = quantized(recipe)
    lowered = fxq.lower(qdq)
    assert kernels(lowered) == [f"fxquant.{kernel}" for kernel in KERNELS[name, recipe]]
    assert fxq.ledger(lowered).coverage == 1.0
    # A step of the hidden values, or of the activations, is worth some hundredths here.
    torch.testing.assert_close(lowered(x(1)), qdq(x(1)), atol=3e-2 if name == "qnnpack" else 1e-5, rtol=1e-4)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_core_runs_the_same_graph_here_as_on_arm(quantized, recipe):
    if not native.available():
        pytest.skip("the C++ kernels are not available")
    qdq = quantized(recipe)
    lowered = fxq.lower(qdq)
    assert all("packed_linear" in kernel for kernel in kernels(lowered))
    exact = recipe.startswith("dynamic")  # a step of the hidden values, or float activations in bfloat16, cost more
    torch.testing.assert_close(lowered(x(1)), qdq(x(1)), atol=1e-5 if exact else 2e-2, rtol=1e-4)


@pytest.mark.parametrize("recipe", ["dynamic", "static"])
def test_a_graph_prepared_for_x86_gives_the_same_bits(model, recipe):
    ready = fxq.prepare(fxq.capture(model, (x(),)), "x86", recipe)
    if recipe == "static":
        fxq.calibrate(ready, [(x(),)], progress=False)
    qdq = fxq.convert(ready)
    ours, theirs = fxq.lower(qdq, "arm"), fxq.lower(qdq, "x86")
    assert torch.equal(ours(x(1)), theirs(x(1)))
    assert kernels(ours) == kernels(theirs)


def test_golden_graphs_of_qnnpack(quantized, stand_in):
    stand_in("qnnpack")
    for recipe in ("static", "dynamic-per-tensor"):
        check_golden(f"lowered_qnnpack_{recipe}", to_text(fxq.lower(quantized(recipe))))


def test_a_lowered_graph_exports_and_survives_saving(quantized, stand_in, tmp_path):
    stand_in("qnnpack")
    lowered = fxq.lower(quantized("static"))
    again = torch.export.export(lowered, (x(),), strict=False).module()
    assert torch.equal(again(x()), lowered(x()))
    fxq.save(lowered, tmp_path / "artifact")
    assert torch.equal(fxq.load(tmp_path / "artifact")(x()), lowered(x()))


def test_the_instructions_of_another_processor_are_refused(quantized, stand_in, monkeypatch):
    stand_in("neon_dot")
    monkeypatch.setattr("fxquant.kernels.cpu.isa.platform.machine", lambda: "x86_64")
    with pytest.raises(fxq.FxQuantError, match="FXQUANT_ISA = 'neon_dot' is not of this processor, x86_64"):
        fxq.lower(quantized("dynamic"))
