"""An output step is what rounding by chance changes: some of what a quantization step can, and float noise without."""

import pytest
import torch
from torch import nn

import fxquant as fxq
from fxquant.passes.qdq_nodes import QUANTIZE
from fxquant.verification.rounding import FLOAT_SHARE, STOCHASTIC, output_steps
from fxquant.verification.whole import as_call


def converted(recipe):
    torch.manual_seed(0)
    model, x = nn.Linear(16, 3).eval(), torch.randn(4, 16)
    prepared = fxq.prepare(fxq.capture(model, (x,)), "x86", recipe)
    return fxq.convert(fxq.calibrate(prepared, [x], progress=False) if recipe == "static" else prepared), (x,), model


def test_a_value_falls_to_either_neighbour_as_often_as_it_is_near():
    x = torch.tensor([[0.25, 2.0, -1.75]]).repeat(4000, 1)
    scale, zero_point = torch.tensor([1.0]), torch.tensor(0)
    generator = torch.Generator().manual_seed(0)
    q = STOCHASTIC[QUANTIZE]((x, scale, zero_point, None, -128, 127, torch.int8), generator)
    assert [sorted(set(column.tolist())) for column in q.T] == [[0, 1], [2], [-2, -1]]
    torch.testing.assert_close(q.float().mean(0), x[0], rtol=0, atol=0.03)


@pytest.mark.parametrize("recipe", ["static", "dynamic"])
def test_a_step_of_one_linear_is_bounded_by_that_of_its_input(recipe):
    gm, inputs, model = converted(recipe)
    (step,) = output_steps(gm, inputs, as_call(gm)(inputs))
    one = float(inputs[0].max() - inputs[0].min()) / 255
    most = float(model.weight.detach().abs().sum(1).max()) * one
    assert most / 50 < step < most


def test_without_rounding_a_step_is_that_of_floats():
    gm, inputs, _ = converted("weight-only")
    (output,) = as_call(gm)(inputs)
    assert output_steps(gm, inputs, [output]) == (pytest.approx(FLOAT_SHARE * float(output.abs().max())),)
