"""benchmarks/convolutions.py prints a row for each system, and names what is not installed."""

import importlib.util

import pytest
import torch


@pytest.fixture
def small(script, monkeypatch):
    convolutions = script("convolutions")
    monkeypatch.setitem(convolutions.MODELS, "vit", lambda: torch.nn.Conv2d(3, 8, 3, stride=16))
    return convolutions


def test_a_row_for_each_system(small):
    text = small.table("vit", ["float32", "fxquant dynamic", "fxquant static"], 1, 1)
    rows = {line.partition("  ")[0]: line.split() for line in text.splitlines()[2:]}
    assert set(rows) == {"float32", "float32, channels last", "fxquant dynamic", "fxquant static"}
    assert all(float(rows[name][-1]) > 30 for name in rows)


def test_a_peer_that_is_missing_is_named(small, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not small.available("OpenVINO int8")
    assert small.available("fxquant static")
    assert "left out: OpenVINO int8 needs openvino, nncf" in capsys.readouterr().out
