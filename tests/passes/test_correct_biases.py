"""What rounded weights add on average is taken from the biases behind them."""

import pytest
import torch
from torch import nn

import fxquant as fxq
from fxquant.graph import edit

aten = torch.ops.aten
WIDTH = 16
RECIPE = "static-smoothquant"


class Model(nn.Module):
    """Linears over values whose means are not 0: with a bias, without one, and of a value that two of them read."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 8)
            self.bare = nn.Linear(WIDTH, 8, bias=False)

    def forward(self, x):
        y = torch.relu(self.first(x))
        return self.second(y) + self.bare(y)


def inputs(seed):
    return 2 + torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def graphs():
    """The model, and its Q/DQ graph."""
    model = Model().eval()
    prepared = fxq.prepare(fxq.capture(model, (inputs(0),)), "x86", RECIPE)
    fxq.calibrate(prepared, [(inputs(seed),) for seed in (1, 2)], progress=False)
    return model, fxq.convert(prepared)


def linear(gm, path):
    return next(n for n in gm.graph.nodes if n.target is aten.linear.default and edit.path_of(n) == path)


def bias_of(gm, path):
    return edit.get_tensor(gm, linear(gm, path).args[2])


def rounded(gm, path):
    """The weight as the graph has it."""
    q, scale = (edit.get_tensor(gm, each) for each in linear(gm, path).args[1].args[:2])
    return q * scale[:, None]


def test_bias_takes_the_mean_error_of_its_weight(graphs):
    model, gm = graphs
    x = torch.cat([inputs(1), inputs(2)])
    error = rounded(gm, "first") - model.first.weight
    torch.testing.assert_close(bias_of(gm, "first"), model.first.bias - error @ x.mean(0), rtol=0, atol=1e-5)
    assert (bias_of(gm, "first") - model.first.bias).abs().max() > 1e-3, "there was something to correct"
    assert torch.equal(model.first.bias, Model().first.bias), "the model's own stays"


def test_results_are_right_on_average(graphs):
    model, gm = graphs
    y = torch.relu(model.first(torch.cat([inputs(1), inputs(2)])))
    sums, products = model.second(y).mean(0), (y @ rounded(gm, "second").T).mean(0)
    torch.testing.assert_close(products + bias_of(gm, "second"), sums, rtol=0, atol=1e-5)
    assert (products + model.second.bias - sums).abs().max() > 1e-3


def test_linears_without_a_bias_and_other_observers_stay(graphs):
    model, gm = graphs
    assert linear(gm, "bare").args[2] is None
    recipe = {"base": RECIPE, "override": [{"path": "first", "spec": {"activation": {"observer": "minmax"}}}]}
    prepared = fxq.prepare(fxq.capture(model, (inputs(0),)), "x86", recipe)
    other = fxq.convert(fxq.calibrate(prepared, [(inputs(1),)], progress=False))
    assert torch.equal(bias_of(other, "first"), model.first.bias)
    assert not torch.equal(bias_of(other, "second"), model.second.bias)
