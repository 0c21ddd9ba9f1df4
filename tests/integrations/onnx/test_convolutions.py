"""Convolutions in ONNX: where runtimes find what their integer kernels stand for."""

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
from blocks import run_ort, step
from torch import nn

import fxquant as fxq

pytest.importorskip("onnx")


class Images(nn.Module):
    """Convolutions in a row, one with groups, and a classifier."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8)
        self.groups, self.last = nn.Conv2d(8, 16, 3, padding=1, groups=2), nn.Conv2d(16, 8, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, images):
        x = torch.relu(self.norm(self.stem(images)))
        x = self.last(torch.relu(self.groups(x)))
        return self.head(x.flatten(2).transpose(1, 2))


def batch(seed=0, count=2):
    return {"images": torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(seed))}


@cache
def converted(recipe):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        graph = fxq.capture(Images().eval(), batch())
    prepared = fxq.prepare(graph, "x86", recipe)
    if recipe == "static":
        fxq.calibrate(prepared, [batch(seed) for seed in range(3)], progress=False)
    return fxq.convert(prepared)


@cache
def exported(recipe, target="onnxruntime"):
    return fxq.export(converted(recipe), Path(mkdtemp()) / "out", target=target)


def expected(recipe, count):
    with torch.no_grad():
        return converted(recipe)(**batch(7, count))


def test_onnxruntime_runs_them_in_integers():
    pytest.importorskip("onnxruntime")
    (found,), ran = run_ort(exported("static").folder / "model.onnx", batch(7, 3))
    assert ran["QLinearConv"] == 3
    assert not ran["Conv"]
    assert (found - expected("static", 3)).abs().max() < 3 * step(converted("static"))


def test_scales_of_samples_become_one():
    pytest.importorskip("onnxruntime")
    report = exported("dynamic")
    texts = [each.text for each in report.substitutions["model"] if "per-sample" in each.text]
    assert len(texts) == 3
    assert "per-sample becomes uint8 per-tensor" in texts[0]
    (found,), _ = run_ort(report.folder / "model.onnx", batch(7, 1))
    torch.testing.assert_close(found, expected("dynamic", 1), atol=1e-2, rtol=1e-2)


def test_openvino_runs_them_in_integers():
    openvino = pytest.importorskip("openvino")
    core = openvino.Core()
    path = exported("static", "openvino").folder / "model.onnx"
    compiled = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = torch.from_numpy(compiled(batch(7, 3))[0].copy())
    nodes = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    layers = [each for each in nodes if each["layerType"].astype(str) == "Convolution"]
    precisions = [each["runtimePrecision"].astype(str) for each in layers]
    assert len(precisions) == 3
    assert "f32" not in precisions
    assert (found - expected("static", 3)).abs().max() < 3 * step(converted("static"))
