"""interop.py runs on a small model beside ONNX Runtime's own quantizers, and what it compares is equal."""

import re

import pytest


def test_interop_measures_a_small_model(script, tmp_path, capsys, monkeypatch):
    for package in ("onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    options = ["--quick", "--models", "gpt2", "--recipes", "static", "--threads", "1", "--work", str(tmp_path)]
    interop = script("interop")
    monkeypatch.setattr(interop, "ROADS", {"ORT": interop.ROADS["ORT"]})  # one is quicker
    interop.main(options)
    out = capsys.readouterr().out
    (found,) = re.findall(r"^static +ORT +(\S+)$", out, re.MULTILINE)
    assert float(found) < 0.05
    assert len(re.findall(r"^fxquant static in ORT +\d+\.\d\d$", out, re.MULTILINE)) == 1
    assert re.findall(r"^ORT int8 (\w+) +\d+\.\d\d$", out, re.MULTILINE) == ["dynamic", "static"]
