"""Static ranges that were found ahead, in graphs of torch.compile."""

import models
import pytest
import torch
from graphs import Two
from torch import nn

import fxquant as fxq
from fxquant.integrations.ranges import put_ranges, read_ranges

X = torch.randn(4, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()


def twice(broken=False):
    return Two(broken, (16, 16, 16), again=True)


def static(model, inputs=X, **options):
    return fxq.quantize(model, (inputs,), recipe="static", calibration=[(inputs,)], progress=False, **options)


def compiled(model, ranges, **options):
    return torch.compile(model, backend="fxquant", options={"recipe": "static", "ranges": ranges, **options})


@pytest.mark.parametrize("stage", ["prepared", "converted", "lowered", "artifact"])
def test_ranges_of_every_stage_give_the_quantized_model(stage, tmp_path):
    model = twice()
    prepared = fxq.calibrate(fxq.prepare(fxq.capture(model, (X,)), "x86", "static"), [(X,)], progress=False)
    qdq = fxq.convert(prepared)
    lowered = fxq.lower(qdq)
    ranges = {"prepared": prepared, "converted": qdq, "lowered": lowered}.get(stage)
    if ranges is None:
        ranges = fxq.save(lowered, tmp_path / "artifact")
    assert torch.equal(compiled(model, ranges)(X), lowered(X))


def test_a_transformer_with_static_ranges():
    model, inputs = models.bert()
    model.encoder.layer = model.encoder.layer[:1]
    batches = [models.encoder_inputs(2, 12), models.encoder_inputs(3, 9)]
    expected = fxq.quantize(model, inputs, recipe="static", calibration=batches, progress=False)
    fast = torch.compile(model, backend="fxquant", dynamic=True, options={"recipe": "static", "ranges": expected})
    with torch.no_grad():
        found = fast(**batches[1]).last_hidden_state
        wanted = expected(**batches[1]).last_hidden_state
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.02 * float(wanted.abs().max()))
    (graph,) = fxq.compiled(model)
    kernels = [sorted(row.kernel for row in fxq.ledger(gm).rows if row.quantized) for gm in (graph, expected)]
    assert kernels[0] == kernels[1] != []


def test_graphs_on_both_sides_of_a_break_find_their_ranges():
    model = twice(broken=True)
    ranges = static(twice())
    assert torch.equal(compiled(model, ranges)(X), ranges(X))
    assert len(fxq.compiled(model)) == 2


class Broken(Two):
    """A break between the two calls of one module."""

    def forward(self, x):
        y = self.second(torch.relu(self.first(x)))
        torch._dynamo.graph_break()
        return self.second(y * 3)


def test_what_the_ranges_lack_is_named():
    with pytest.raises(Exception, match=r"ConfigError.*hold 2 for the x of the op at second.*calls it 1 times"):
        compiled(Broken(False, (16, 16, 16)), static(twice()))(X)
    with pytest.raises(Exception, match=r"ConfigError.*hold none for the x of the op at first.*Known: 0"):
        compiled(twice(), static(nn.Sequential(nn.Linear(16, 16)).eval()))(X)


def test_ranges_of_another_spec_are_refused():
    recipe = {"base": "static", "spec": {"activation": {"symmetric": True}}}
    prepared = fxq.prepare(fxq.capture(twice(), (X,)), "x86", recipe)
    with pytest.raises(fxq.ConfigError, match=r"(?s)range of the x of the op at first is for .*recipe asks for"):
        put_ranges(prepared, read_ranges(static(twice())))


def test_what_has_no_ranges_is_refused():
    with pytest.raises(fxq.ConfigError, match=r"the ranges hold none: give what quantize.* made"):
        read_ranges(fxq.quantize(twice(), (X,)))
    with pytest.raises(fxq.ConfigError, match="not of a Two"):
        read_ranges(twice())
    with pytest.raises(fxq.ArtifactError):
        read_ranges("nowhere")
