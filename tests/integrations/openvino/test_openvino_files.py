"""OpenVINO's own files, run by OpenVINO: what ONNX cannot say is in them, and they compute what their graph does."""

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
from blocks import captured, converted, inputs, reference

import fxquant as fxq
from fxquant.graph import edit
from fxquant.integrations.openvino.export import openvino_dialect
from fxquant.integrations.openvino.groups import GROUP, round_groups
from fxquant.passes.qdq_nodes import QUANTIZE

SYMMETRIC = {"base": "static", "spec": {"activation": {"dtype": "int8", "symmetric": True}}}


@cache
def graph(recipe):
    if recipe != "symmetric":
        return converted(recipe)
    prepared = fxq.prepare(captured(), "reference", fxq.Recipe.from_dict(SYMMETRIC))
    return fxq.convert(fxq.calibrate(prepared, [inputs(4, 8, seed) for seed in range(3)], progress=False))


@cache
def written(recipe):
    return fxq.export(graph(recipe), Path(mkdtemp()) / "out", format="openvino")


def compiled(recipe):
    """Return the file as read, and as compiled: without an option that the file could state."""
    import openvino

    core = openvino.Core()
    model = core.read_model(written(recipe).folder / "model.xml")
    return model, core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1})


def run(model, batch):
    found = model({name: tensor.numpy() for name, tensor in batch.items()})
    return [torch.from_numpy(found[place].copy()) for place in (0, 1)]


def precisions(model):
    layers = [node.get_rt_info() for node in model.get_runtime_model().get_ordered_ops()]
    return {
        each["runtimePrecision"].astype(str) for each in layers if each["layerType"].astype(str) == "FullyConnected"
    }


def has_vnni():
    path = Path("/proc/cpuinfo")
    return path.exists() and "vnni" in path.read_text()


def test_dynamic_activations_are_quantized_in_groups():
    _, model = compiled("dynamic")
    batch = inputs(3, 5, 1)
    found, ours = run(model, batch), reference(openvino_dialect(graph("dynamic")), batch)
    assert model.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE") == GROUP
    assert precisions(model) == {"i8"}
    if not has_vnni():
        pytest.skip("OpenVINO quantizes activations at run time on CPUs with VNNI alone")
    for left, right in zip(ours, found, strict=True):
        torch.testing.assert_close(right, left, rtol=0, atol=1e-5)
    assert (found[0] - reference(graph("dynamic"), batch)[0]).abs().max() > 1e-4, "other numbers, as it is said"
    names = {each.name for each in written("dynamic").substitutions["model"]}
    assert "dynamic in groups" in names
    assert "per-tensor dynamic" not in names


def test_weights_alone_leave_activations_in_float():
    _, model = compiled("weight-only-int4")
    assert model.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE") == 0
    assert precisions(model) == {"i4"}
    batch = inputs(3, 5, 1)
    for left, right in zip(reference(graph("weight-only-int4"), batch), run(model, batch), strict=True):
        torch.testing.assert_close(right, left, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("recipe", "levels"), [("static", 256), ("symmetric", 255)])
def test_levels_and_ranges_are_those_of_the_graph(recipe, levels):
    read, model = compiled(recipe)
    fakes = [op for op in read.get_ordered_ops() if op.get_type_name() == "FakeQuantize"]
    ends = sorted(tuple(float(op.input_value(place).get_node().get_data()) for place in range(1, 5)) for op in fakes)
    expected = []
    for node in graph(recipe).graph.find_nodes(op="call_function", target=QUANTIZE):
        scale, zero_point = (float(edit.get_tensor(graph(recipe), each)) for each in node.args[1:3])
        low, high = node.args[4:6]
        expected.append(((low - zero_point) * scale, (high - zero_point) * scale, low, high))
    assert {op.get_attributes()["levels"] for op in fakes} == {levels}
    assert ends == [pytest.approx(each, rel=1e-6) for each in sorted(expected)]
    assert precisions(model) == {"u8" if recipe == "static" else "i8"}
    assert "whole range" not in {each.name for each in written(recipe).substitutions["model"]}
    batch = inputs(3, 5, 1)
    batch["mask"][0] = 0
    found, ours, dialect = run(model, batch), graph(recipe), openvino_dialect(graph(recipe))
    for left, right in zip(reference(dialect, batch), found, strict=True):
        assert (right - left).abs().median() < 1e-5
        assert (right[0] - left[0]).abs().median() < 1e-5, "queries that see no key"
    assert (reference(ours, batch)[0][0] - found[0][0]).abs().median() > 1e-3


def test_rounding_of_groups():
    x = torch.cat([torch.linspace(-2, 1, GROUP), torch.zeros(GROUP), torch.tensor([127.0, 0.4, -0.6])])[None]
    found = round_groups(x, GROUP)
    step = 2 / 127
    torch.testing.assert_close(found[:, :GROUP], torch.round(x[:, :GROUP] / step) * step)
    assert found[0, GROUP:].tolist() == [*[0.0] * GROUP, 127.0, 0.0, -1.0]
    assert torch.equal(round_groups(x[:, : GROUP - 1], GROUP), x[:, : GROUP - 1])


def test_other_targets_are_refused(tmp_path):
    with pytest.raises(fxq.ConfigError, match="unknown target 'gpu': did you mean 'cpu'"):
        fxq.export(graph("static"), tmp_path / "out", format="openvino", target="gpu")
    assert not (tmp_path / "out").exists()
