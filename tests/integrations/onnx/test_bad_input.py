"""What an export refuses, with a message that helps; and that it leaves nothing half-written."""

import sys

import pytest
import torch
from blocks import captured, converted
from torch import nn

import fxquant as fxq
from fxquant.errors import ConfigError, ExportError, MissingExtraError


class Table(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(10, 32)

    def forward(self, ids):
        return self.words(ids)


class Sorted(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        return torch.special.bessel_j1(self.linear(x))


def test_float_graph(tmp_path):
    with pytest.raises(ExportError, match=r"captured and not quantized: give what fxquant\.convert"):
        fxq.export(captured(), tmp_path / "out")


def test_unknown_format_and_target(tmp_path):
    with pytest.raises(ConfigError, match=r"unknown format 'onxx': did you mean 'onnx'\?"):
        fxq.export(converted("static"), tmp_path / "out", format="onxx")
    with pytest.raises(ConfigError, match=r"unknown target 'onnxruntim': did you mean 'onnxruntime'\?"):
        fxq.export(converted("static"), tmp_path / "out", target="onnxruntim")
    assert not list(tmp_path.iterdir())


def test_missing_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingExtraError, match=r"needs the package onnxscript.* pip install 'fxquant\[onnx\]'"):
        fxq.export(converted("static"), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_op_without_a_form_is_named(tmp_path):
    ids = torch.tensor([[1, 2], [3, 4]])
    spec = {"dtype": "int4", "granularity": "per-group", "group_size": 32}
    recipe = {"spec": {"embedding": spec}}
    backend = fxq.load_backend("x86")
    data = backend.to_dict()
    data["kernel"]["embedding_int8"]["weight"] = {"dynamic": False}
    from fxquant.backends import read_backend

    graph = fxq.convert(fxq.prepare(fxq.capture(Table(), (ids,)), read_backend(data, "test"), recipe))
    with pytest.raises(ExportError, match=r"words cannot be written for onnxruntime: .*override"):
        fxq.export(graph, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_op_that_the_exporter_refuses_is_named(tmp_path):
    graph = fxq.convert(fxq.prepare(fxq.capture(Sorted(), (torch.randn(2, 8),)), "x86", "dynamic"))
    with pytest.raises(ExportError, match=r"%special_bessel_j1 \(aten\.special_bessel_j1\.default\) cannot be written"):
        fxq.export(graph, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_folder_with_something_else(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ExportError, match=r"holds notes\.txt and no export"):
        fxq.export(converted("static"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
