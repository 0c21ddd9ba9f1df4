"""Outliers of activations move to weights: the float numbers stay, the quantized ones come nearer to them."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import fxquant as fxq
from fxquant.graph import edit
from fxquant.kernels.cpu import native
from fxquant.passes.qdq_nodes import QUANTIZE
from fxquant.passes.smooth_activations import SmoothActivations

aten = torch.ops.aten
WIDTH = 16


class Model(nn.Module):
    """A normalization whose result has outliers, and linears."""

    def __init__(self, function):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 8)
        self.norm, self.function = nn.LayerNorm(WIDTH), function
        with torch.no_grad():
            self.norm.weight[3], self.norm.bias[5] = 40, 30
        self.eval()

    def forward(self, x):
        return self.function(self, self.norm(x))


def inputs(seed=0):
    return torch.randn(4, 6, WIDTH, generator=torch.Generator().manual_seed(seed))


def prepared(function, backend="x86", recipe="static-smoothquant"):
    model = Model(function)
    gm = fxq.prepare(fxq.capture(model, (inputs(),)), backend, recipe)
    return model, fxq.calibrate(gm, [(inputs(seed),) for seed in range(3)], progress=False)


def products(gm):
    return [node for node in gm.graph.nodes if node.target is aten.mul.Tensor]


def residual(m, x):
    return m.first(x) + x


def parallel(m, x):
    return m.first(x), m.second(x), x


def alone(m, x):
    return m.second(x)


@pytest.mark.parametrize(
    ("function", "constants"), [(residual, 1), (parallel, 1), (alone, 0)], ids=["residual", "parallel", "alone"]
)
def test_the_float_numbers_stay(function, constants):
    model, gm = prepared(function)
    smoothed = edit.clone(gm)
    assert SmoothActivations().apply(smoothed) == 1
    smoothed.recompile()
    assert len(products(smoothed)) == constants, "a normalization that linears alone read takes the factors in"
    torch.testing.assert_close(smoothed(inputs(7)), model(inputs(7)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gm(inputs(7)), model(inputs(7)), rtol=1e-4, atol=1e-4)
    assert SmoothActivations().apply(smoothed) == 0, "nothing stands out any more"


@pytest.mark.parametrize("function", [residual, alone])
def test_the_quantized_numbers_come_nearer(function):
    model, gm = prepared(function)
    _, plain = prepared(function, recipe="static")
    x = inputs(7)
    near, far = ((fxq.convert(each)(x) - model(x)).pow(2).mean() for each in (gm, plain))
    assert near * 5 < far


def test_one_activation_of_several_linears_has_one_factor():
    _, gm = prepared(parallel)
    (product,) = products(fxq.convert(gm))
    (quantize,) = product.users
    assert quantize.target is QUANTIZE
    assert len(next(iter(quantize.users)).users) == 2


def test_what_other_ops_read_stays():
    _, gm = prepared(lambda m, x: (m.first(x), x @ x.mT), "reference")
    assert SmoothActivations().apply(edit.clone(gm)) == 0


@pytest.mark.parametrize("backend", ["x86", "reference"])
def test_kernels_compute_what_the_graph_says(backend):
    _, gm = prepared(lambda m, x: m.second(functional.gelu(m.first(x))) + m.second(x), backend)
    qdq = fxq.convert(gm)
    x = inputs(7)
    torch.testing.assert_close(fxq.lower(qdq)(x), qdq(x), rtol=0, atol=0.05)


def test_a_row_program_takes_the_factors_in():
    if not native.available():
        pytest.skip("no C++ kernels")
    _, gm = prepared(residual)
    lowered = fxq.lower(fxq.convert(gm))
    calls = [str(node.target) for node in lowered.graph.nodes if node.op == "call_function"]
    assert [name for name in calls if "getitem" not in name] == ["fxquant.row_program.default"]
