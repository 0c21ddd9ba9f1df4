"""Exports to ONNX against the real ONNX Runtime: the same numbers, in integer kernels, at any size."""

import json

import pytest
import torch
from blocks import converted, exported, inputs, reference, run_ort, step

import fxquant as fxq
from fxquant.cli import main
from fxquant.integrations.onnx.profiles import PROFILES

INTEGER = ("MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QLinearMatMul", "MatMulInteger", "QGemm")
FLOAT = ("Gemm", "FusedGemm", "DequantizeLinear")
ATTENTION = ("MatMul", "FusedMatMul")  # its two products, of activations


def file_of(report):
    return report.folder / "model.onnx"


def read(report):
    import onnx

    return onnx.load(file_of(report))


def dialect(recipe, target="onnxruntime"):
    gm = PROFILES[target].dialect(converted(recipe))
    gm.recompile()
    return gm


@pytest.mark.parametrize("batch", [inputs(), inputs(1, 9, 1), inputs(5, 3, 2)], ids=["2x6", "1x9", "5x3"])
def test_static_is_the_reference_to_one_step(batch):
    gm = converted("static")
    found, _ = run_ort(file_of(exported("static")), batch)
    for ours, theirs in zip(reference(gm, batch), found, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=0, atol=step(gm))
    # most values are closer by far: no rounding of theirs fell to the other side
    assert (found[0] - reference(gm, batch)[0]).abs().median() < 1e-5


@pytest.mark.parametrize("backend", ["x86", "reference"], ids=["uint8", "int8"])
def test_static_runs_on_integers_as_often_as_the_ledger_says(backend):
    report = exported("static", backend=backend)
    _, ran = run_ort(file_of(report), inputs())
    rows = [row for row in fxq.ledger(converted("static", backend)).rows if row.quantized and row.family == "linear"]
    merged = [each for each in report.substitutions["model"] if each.name == "merged product"]
    assert len(rows) == 7
    assert len(merged) == 2
    assert sum(ran[name] for name in INTEGER) == len(rows) - len(merged)
    assert not [name for name in FLOAT if ran[name]]
    assert sum(ran[name] for name in ATTENTION) == 2


def test_dynamic_is_the_substituted_reference():
    batch, gm = inputs(3, 5, 1), dialect("dynamic")
    found, ran = run_ort(file_of(exported("dynamic")), batch)
    for ours, theirs in zip(reference(gm, batch), found, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-2)
    assert (found[0] - reference(gm, batch)[0]).abs().median() < 1e-5
    assert sum(ran[name] for name in INTEGER) >= 5
    assert not [name for name in FLOAT if ran[name]]
    (name,) = {each.name for each in exported("dynamic").substitutions["model"] if not each.exact}
    assert name == "per-tensor dynamic"


def test_int4_blocks_are_the_reference():
    batch = inputs(3, 5, 1)
    found, ran = run_ort(file_of(exported("weight-only-int4")), batch, float_activations=True)
    for ours, theirs in zip(reference(converted("weight-only-int4"), batch), found, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)
    assert ran["MatMulNBits"] >= 5
    assert not [name for name in FLOAT if ran[name]]


def test_int4_is_stored_in_four_bits_along_the_contracted_axis():
    import onnx

    model = read(exported("weight-only-int4"))
    tables = {each.name: each for each in model.graph.initializer}
    blocks = [node for node in model.graph.node if node.op_type == "DequantizeLinear"]
    for node in blocks:
        options = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
        weight, scale, zero_point = (tables[name] for name in node.input)
        assert weight.data_type == zero_point.data_type == onnx.TensorProto.INT4
        assert (options["axis"], options["block_size"]) == (0, 32)
        assert list(scale.dims) == [-(-weight.dims[0] // 32), weight.dims[1]]
        assert len(weight.raw_data) == (weight.dims[0] * weight.dims[1] + 1) // 2


def test_fp8_weights(tmp_path):
    x = torch.randn(3, 2, 16, generator=torch.Generator().manual_seed(0))
    recipe = {"base": "weight-only", "spec": {"weight": {"dtype": "float8_e4m3fn"}}}
    gm = fxq.convert(fxq.prepare(fxq.capture(torch.nn.Linear(16, 8).eval(), (x,)), "reference", recipe))
    report = fxq.export(gm, tmp_path / "out")
    (found,), _ = run_ort(file_of(report), {"input": x})
    torch.testing.assert_close(found, gm(x), rtol=1e-5, atol=1e-6)
    assert 17 in {each.data_type for each in read(report).graph.initializer}, "FLOAT8E4M3FN"


def test_static_form():
    import onnx

    model = read(exported("static"))
    onnx.checker.check_model(model)
    tables = {each.name: each for each in model.graph.initializer}
    (opset,) = [each.version for each in model.opset_import if each.domain == ""]
    assert opset >= 21
    assert {onnx.TensorProto.UINT8} == {
        tables[node.input[2]].data_type for node in model.graph.node if node.op_type == "QuantizeLinear"
    }
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in tables:
            (axis,) = [each.i for each in node.attribute if each.name == "axis"]
            assert (axis, len(node.input)) == (1, 2), "per output column, and no zero point: it is symmetric"
            assert list(tables[node.input[1]].dims) == [tables[node.input[0]].dims[1]]
    assert [each.name for each in model.graph.output] == ["hidden", "pooled"]
    sizes = [
        [each.dim_param or each.dim_value for each in value.type.tensor_type.shape.dim] for value in model.graph.input
    ]
    assert sizes[0][1] == sizes[1][1] != 6


def test_metadata_says_where_it_came_from():
    model = read(exported("dynamic"))
    facts = {each.key: each.value for each in model.metadata_props}
    assert model.producer_name == "fxquant"
    assert facts["fxquant.backend"] == "x86"
    assert facts["fxquant.target"] == "onnxruntime"
    substituted = {each["name"] for each in json.loads(facts["fxquant.substitutions"])}
    assert {"per-tensor dynamic", "integer look-up"} <= substituted
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    report = json.loads((exported("dynamic").folder / "export.json").read_text())
    assert {each["name"] for each in report["graphs"]["model"]["substitutions"]} == substituted
    assert report["graphs"]["model"]["ledger"]["stage"] == "converted"


def test_command_line_and_large_models(tmp_path, capsys, monkeypatch):
    from fxquant.integrations.onnx import model_file

    monkeypatch.setattr(model_file, "LARGEST", 0)
    fxq.save(converted("static"), tmp_path / "artifact")
    out = tmp_path / "out"
    assert main(["export", str(tmp_path / "artifact"), str(out), "--format", "onnx"]) == 0
    text = capsys.readouterr().out
    assert f"wrote model.onnx, model.onnx.data in {out}" in text
    assert "1 × integer look-up (same numbers)" in text
    assert (out / "model.onnx.data").stat().st_size > 33_000, "the integers of all weights"
    found, expected = (run_ort(path, inputs(1, 4, 3))[0] for path in (out / "model.onnx", file_of(exported("static"))))
    assert torch.equal(found[0], expected[0])

    assert main(["export", str(tmp_path / "artifact"), str(out), "--target", "tpu"]) == 1
    assert "unknown target 'tpu'" in capsys.readouterr().err
    assert sorted(path.name for path in out.iterdir()) == ["export.json", "model.onnx", "model.onnx.data"]
