"""interop.py runs on a small model beside ONNX Runtime's own quantizers, and what it compares is equal."""

import re
from dataclasses import replace

import pytest


def test_interop_measures_a_small_model(script, tmp_path, capsys, monkeypatch):
    for package in ("onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(package)
    options = ["--quick", "--models", "gpt2", "--recipes", "static", "--threads", "1", "--work", str(tmp_path)]
    interop = script("interop")
    one_file = replace(interop.RUNTIMES["ORT"], start=interop.openvino)  # is quicker
    monkeypatch.setattr(interop, "RUNTIMES", {"ORT": interop.RUNTIMES["ORT"], "OpenVINO": one_file})
    interop.main(options)
    out = capsys.readouterr().out
    found = dict(re.findall(r"^static +(ORT|OpenVINO) +(\S+)$", out, re.MULTILINE))
    assert set(found) == {"ORT", "OpenVINO"}
    assert all(float(each) < 0.05 for each in found.values())
    assert len(re.findall(r"^fxquant static in \w+ +\d+\.\d\d$", out, re.MULTILINE)) == 2
    assert re.findall(r"^ORT int8 (\w+) +\d+\.\d\d$", out, re.MULTILINE) == ["dynamic", "static"]
