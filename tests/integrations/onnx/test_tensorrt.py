"""TensorRT's rules: a graph that keeps them passes, one that breaks a rule names it; and the implicit form."""

import struct

import pytest
import torch
from blocks import captured, converted, exported, inputs, reference, run_ort

import fxquant as fxq
from fxquant.errors import ExportError
from fxquant.graph import edit
from fxquant.integrations.onnx.ops import DEQUANTIZE_BLOCKS, DYNAMIC_QUANTIZE
from fxquant.integrations.onnx.profiles import PROFILES
from fxquant.integrations.onnx.tensorrt import RULES, check_tensorrt
from fxquant.passes.qdq_nodes import DEQUANTIZE, QUANTIZE

SYMMETRIC = {"base": "static", "spec": {"activation": {"dtype": "int8", "symmetric": True}}}


@pytest.fixture(scope="module")
def kept():
    """The Q/DQ graph of a recipe that keeps all rules."""
    prepared = fxq.prepare(captured(), "reference", SYMMETRIC)
    return fxq.convert(fxq.calibrate(prepared, [inputs(4, 8)], progress=False))


@pytest.fixture
def dialect(kept):
    return PROFILES["tensorrt"].dialect(kept)


def first(gm, *targets, constant=False):
    nodes = (node for node in gm.graph.nodes if node.target in targets)
    return next(node for node in nodes if edit.is_constant(node.args[0]) == constant)


def broken(gm):
    """Return the rules that a graph breaks."""
    return {name for name in RULES if list(RULES[name](gm))}


def put(gm, node, index, tensor):
    edit.set_argument(node, index, edit.add_constant(gm, "put", tensor, next(iter(gm.graph.nodes))))


def test_symmetric_int8_keeps_all_rules(dialect):
    check_tensorrt(dialect)
    assert broken(dialect) == set()


@pytest.mark.parametrize(("recipe", "rules"), [("static", {"symmetric", "signed"}), ("dynamic", {"constant-scale"})])
def test_recipes_of_x86_break_some(recipe, rules, tmp_path):
    assert broken(PROFILES["tensorrt"].dialect(converted(recipe))) == rules
    with pytest.raises(ExportError, match=r"rules that break here(.|\n)*symmetric = true"):
        fxq.export(converted(recipe), tmp_path / "out", target="tensorrt")
    assert not list(tmp_path.iterdir())


def test_blocks_are_signed_symmetric_and_of_64_or_128():
    gm = PROFILES["tensorrt"].dialect(converted("weight-only-int4"))
    assert broken(gm) == {"symmetric", "blocks"}
    node = first(gm, DEQUANTIZE_BLOCKS, constant=True)
    edit.set_argument(node, 4, 48)
    assert "a scale for every 48 values" in dict(RULES["blocks"](gm))[node]
    for each in gm.graph.nodes:
        if each.target is DEQUANTIZE_BLOCKS:
            edit.set_argument(each, 4, 64)
    assert [text for _, text in RULES["blocks"](gm)] == ["blocks of 64 do not divide the 96 values that are summed"]
    edit.set_argument(node, 5, "uint4")
    assert [each for each, _ in RULES["signed"](gm)] == [node]


def test_zero_point(dialect):
    put(dialect, first(dialect, DEQUANTIZE, constant=True), 2, torch.tensor(3, dtype=torch.int8))
    assert broken(dialect) == {"symmetric"}


def test_unsigned(dialect):
    edit.set_argument(first(dialect, QUANTIZE), 6, torch.uint8)
    assert broken(dialect) == {"signed"}


@pytest.mark.parametrize("bad", [0.0, float("inf")])
def test_scale_is_positive_and_finite(dialect, bad):
    node = first(dialect, DEQUANTIZE, constant=True)
    put(dialect, node, 1, torch.full_like(edit.get_tensor(dialect, node.args[1]), bad))
    assert broken(dialect) == {"positive-scale"}


def test_axis_of_an_activation_and_of_a_weight(dialect):
    edit.set_argument(first(dialect, QUANTIZE), 3, 2)
    node = first(dialect, DEQUANTIZE, constant=True)
    edit.set_argument(node, 3, 0)
    assert broken(dialect) == {"axis"}
    assert len(list(RULES["axis"](dialect))) == 2


def test_pairs(dialect):
    node = first(dialect, DEQUANTIZE)
    put(dialect, node, 1, torch.tensor(0.5))
    assert broken(dialect) == {"pairs"}
    q = node.args[0]
    with dialect.graph.inserting_after(q):
        edit.call(dialect.graph, torch.ops.aten.neg.default, (q,), like=q)
    assert any("aten.neg.default" in text for _, text in RULES["pairs"](dialect))


def test_bias(kept, dialect):
    assert any(node.target is DEQUANTIZE and edit.info(node).shape == (64,) for node in kept.graph.nodes), (
        "int32 biases"
    )
    node = first(dialect, DEQUANTIZE, constant=True)
    put(dialect, node, 0, torch.zeros(64, dtype=torch.int8))
    edit.mark(node, value=edit.describe(torch.zeros(64)).to_dict())
    assert broken(dialect) == {"no-bias"}


def test_scale_found_at_run_time(dialect):
    x = first(dialect, QUANTIZE).args[0]
    with dialect.graph.inserting_after(x):
        edit.call(dialect.graph, DYNAMIC_QUANTIZE, (x,), like=x)
    assert broken(dialect) == {"constant-scale"}


def test_every_rule_has_a_test():
    assert set(RULES) == {
        "constant-scale",
        "symmetric",
        "signed",
        "positive-scale",
        "axis",
        "blocks",
        "pairs",
        "no-bias",
    }


def test_implicit_form_is_a_float_model_and_a_table():
    import onnx

    report = exported("static", "tensorrt-implicit")
    model = onnx.load(report.folder / "model.onnx")
    assert not {"QuantizeLinear", "DequantizeLinear"} & {node.op_type for node in model.graph.node}
    head, *lines = (report.folder / "model.calib").read_text().splitlines()
    assert head.startswith("TRT-")
    table = {name: struct.unpack(">f", bytes.fromhex(bits))[0] for name, bits in (line.split(": ") for line in lines)}
    tensors = {name for node in model.graph.node for name in node.output}
    gm = converted("static")
    quantized = [node for node in gm.graph.nodes if node.target is QUANTIZE]
    assert set(table) <= tensors
    assert len(table) == len(quantized)
    steps = []
    for node in quantized:
        scale, zero = (float(edit.get_tensor(gm, each)) for each in node.args[1:3])
        steps.append(scale * max(zero, 255 - zero) / 127)
    assert sorted(table.values()) == pytest.approx(sorted(steps))


def test_implicit_model_computes_the_graph_without_activations_rounded():
    gm, batch = edit.clone(converted("static")), inputs(3, 5, 1)
    for node in gm.graph.nodes:
        if node.target is QUANTIZE or (node.target is DEQUANTIZE and not edit.is_constant(node.args[0])):
            node.replace_all_uses_with(node.args[0])
    gm.recompile()
    found, ran = run_ort(exported("static", "tensorrt-implicit").folder / "model.onnx", batch)
    for ours, theirs in zip(reference(gm, batch), found, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)
    assert not ran["MatMulIntegerToFloat"]
