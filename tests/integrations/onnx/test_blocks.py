"""Blocks of weights that do not divide what is summed become smaller ones that do, with the same numbers."""

import pytest
import torch
from blocks import run_ort
from torch import nn

import fxquant as fxq
from fxquant.errors import ExportError
from fxquant.graph import edit
from fxquant.integrations.onnx.ops import DEQUANTIZE_BLOCKS
from fxquant.integrations.onnx.profiles import PROFILES

X = torch.randn(3, 96, generator=torch.Generator().manual_seed(0))


def quantized(weight, backend="x86"):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        graph = fxq.capture(nn.Linear(96, 8).eval(), (X,))
    return fxq.convert(fxq.prepare(graph, backend, {"base": "weight-only", "spec": {"weight": weight}}))


@pytest.mark.parametrize(("size", "smaller", "rows"), [(64, 32, 3), (128, 32, 3), (32, 32, 3), (36, 12, 8)])
@pytest.mark.parametrize("symmetric", [True, False])
def test_short_last_blocks(size, smaller, rows, symmetric):
    weight = {"dtype": "int4", "granularity": "per-group", "group_size": size, "symmetric": symmetric}
    gm = quantized(weight)
    dialect = PROFILES["openvino"].dialect(gm)
    (node,) = dialect.graph.find_nodes(op="call_function", target=DEQUANTIZE_BLOCKS)
    assert node.args[4] == smaller
    assert edit.get_tensor(dialect, node.args[1]).shape == (rows, 8)
    dialect.recompile()
    torch.testing.assert_close(dialect(X), gm(X), rtol=1e-6, atol=1e-6)


def test_four_bits_for_each_column_are_written_as_such(tmp_path):
    import onnx

    gm = quantized({"dtype": "int4", "granularity": "per-channel"})
    report = fxq.export(gm, tmp_path / "out")
    model = onnx.load(report.folder / "model.onnx")
    (weight,) = [each for each in model.graph.initializer if list(each.dims) == [96, 8]]
    assert weight.data_type == onnx.TensorProto.INT4
    (found,), ran = run_ort(report.folder / "model.onnx", {"input": X}, float_activations=True)
    torch.testing.assert_close(found, gm(X), rtol=1e-5, atol=1e-5)
    assert ran["MatMulNBits"] == 1


def test_activations_in_float8_are_refused_where_no_runtime_takes_them(tmp_path):
    weight = {"dtype": "float8_e4m3fn"}
    activation = {**weight, "symmetric": True, "observer": "minmax"}
    recipe = {"base": "static", "spec": {"activation": activation, "weight": weight}}
    prepared = fxq.prepare(fxq.capture(nn.Linear(96, 8).eval(), (X,)), "reference", recipe)
    static = fxq.convert(fxq.calibrate(prepared, [(X,)], progress=False))
    for target in ("onnxruntime", "openvino"):
        with pytest.raises(
            ExportError, match=r"%quantize.* cannot be written: .*weights alone in float8: .*weight-only"
        ):
            fxq.export(static, tmp_path / "out", target=target)
    PROFILES["tensorrt"].check(PROFILES["tensorrt"].dialect(static))
    dynamic = fxq.convert(fxq.prepare(fxq.capture(nn.Linear(96, 8).eval(), (X,)), "reference", "fp8"))
    for options in ({}, {"format": "openvino"}):
        with pytest.raises(ExportError, match=r"choose_qparams.* cannot be written .*: a scale found at run time"):
            fxq.export(dynamic, tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())
