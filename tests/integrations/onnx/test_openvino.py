"""The file that ONNX Runtime takes, in OpenVINO: the same numbers, in low precision."""

from collections import Counter

import pytest
import torch
from blocks import converted, exported, inputs, reference, step

openvino = pytest.importorskip("openvino")


def run(recipe, batch, *, target="onnxruntime", backend="x86"):
    """Return the outputs, and kind and precision of each layer as the plugin runs it."""
    core = openvino.Core()
    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
    compiled = core.compile_model(
        core.read_model(exported(recipe, target, backend).folder / "model.onnx"), "CPU", hints
    )
    found = compiled.create_infer_request().infer({name: tensor.numpy() for name, tensor in batch.items()})
    layers = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    kinds = Counter((each["layerType"].astype(str), each["runtimePrecision"].astype(str)) for each in layers)
    return [torch.from_numpy(found[place].copy()) for place in (0, 1)], kinds


def products(kinds):
    return {precision: count for (kind, precision), count in kinds.items() if kind == "FullyConnected"}


def test_static_runs_on_integers():
    batch, gm = inputs(3, 5, 1), converted("static")
    found, kinds = run("static", batch)
    assert products(kinds) == {"u8": 5}
    for ours, theirs in zip(reference(gm, batch), found, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=0, atol=step(gm))
    assert (found[0] - reference(gm, batch)[0]).abs().median() < 1e-5


def test_blocks_of_int4_stay_int4():
    batch = inputs(3, 5, 1)
    found, kinds = run("weight-only-int4", batch)
    assert products(kinds) == {"i4": 5}
    for ours, theirs in zip(reference(converted("weight-only-int4"), batch), found, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)


def test_heads_meet_in_integers():
    batch, gm = inputs(3, 5, 1), converted("static", "openvino")
    found, kinds = run("static", batch, target="openvino", backend="openvino")
    assert products(kinds) == {"u8": 7}, "query, key and value apart"
    assert kinds["Subgraph", "i8"] == 1, "attention as one, of integers"
    for ours, theirs in zip(reference(gm, batch), found, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=0, atol=step(gm))
