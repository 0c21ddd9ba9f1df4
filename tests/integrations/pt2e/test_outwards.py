"""Q/DQ graphs in the operators of PT2E: the same numbers, in what torch.export and from_pt2e take."""

import json
from collections import Counter

import pytest
import torch
from pt2e_graphs import LINEARS, X, captured, chain, converted, inputs, named

import fxquant as fxq
from fxquant.cli import main


def operators(gm):
    """Return how often operators of the dialect are called."""
    names = [str(node.target) for node in gm.graph.nodes if node.op == "call_function"]
    return Counter(name.removeprefix("quantized_decomposed.") for name in names if name.startswith("quantized"))


EXPECTED = {
    "dynamic": {
        "choose_qparams_per_token_asymmetric.default": 5,
        "quantize_per_token.default": 5,
        "dequantize_per_token.default": 5,
        "dequantize_per_channel.default": LINEARS,
    },
    "static": {
        "quantize_per_tensor.default": 5,
        "dequantize_per_tensor.default": 5,
        "dequantize_per_channel.default": LINEARS,
    },
    "weight-only": {"dequantize_per_channel.default": LINEARS},
    "weight-only-int4": {"dequantize_per_channel_group.default": LINEARS},
}


@pytest.mark.parametrize("recipe", EXPECTED)
def test_operators_and_numbers(recipe):
    graph = converted(recipe)
    dialect = fxq.to_pt2e(graph)
    assert operators(dialect) == EXPECTED[recipe]
    assert not [node for node in dialect.graph.nodes if str(node.target).startswith("fxquant.")]
    batch = named(3, 9, 1)
    # the dialect's choose_qparams may round a zero point the other way, and moves the integers by one then
    bound = 0.01 if recipe == "dynamic" else 1e-5
    for name, value in graph(**batch).items():
        torch.testing.assert_close(dialect(**batch)[name], value, rtol=0, atol=bound)


def test_out_and_in_again():
    graph = converted("static")
    back = fxq.lower(fxq.to_pt2e(graph), "reference")
    torch.testing.assert_close(back(**named())["hidden"], graph(**named())["hidden"], rtol=0, atol=1e-5)
    assert fxq.ledger(back).share("linear") == 1.0


def test_file_holds_a_program_that_torch_loads(tmp_path, capsys):
    fxq.save(converted("dynamic"), tmp_path / "artifact")
    assert main(["export", str(tmp_path / "artifact"), str(tmp_path / "out"), "--format", "pt2e"]) == 0
    assert "called as (input_ids, mask) → (hidden, pooled)" in capsys.readouterr().out
    report = json.loads((tmp_path / "out/export.json").read_bytes())
    assert (report["format"], report["graphs"]["model"]["substitutions"]) == ("pt2e", [])
    program = torch.export.load(tmp_path / "out/model.pt2").module()
    hidden, _ = program(*inputs(3, 9, 1))  # sizes are free
    torch.testing.assert_close(hidden, fxq.to_pt2e(converted("dynamic"))(**named(3, 9, 1))["hidden"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("backend", ["x86", "reference"], ids=["uint8", "int8 and int32 biases"])
def test_xnnpack_takes_fixed_scales_where_results_have_them(backend):
    dialect = fxq.to_pt2e(chain(backend), target="xnnpack")
    linears = [node for node in dialect.graph.nodes if node.target is torch.ops.aten.linear.default]
    fixed, by_token = "dequantize_per_tensor.default", "dequantize_per_token.default"
    assert [str(node.args[0].target).partition(".")[2] for node in linears] == [fixed, fixed, by_token]
    assert all(node.args[2].op == "get_attr" for node in linears)
    (behind,) = linears[1].users
    assert behind.args[-1] is torch.int8
    (relu,) = linears[0].users
    assert [str(node.target) for node in relu.users] == ["quantized_decomposed.quantize_per_tensor.default"]
    # what differs is the last linear's activations, which are quantized once more, and finer
    error = (dialect(X) - chain(backend)(X)).abs()
    assert error.max() < 0.02
    assert error.median() > 0


def test_substitutions_are_told(tmp_path):
    report = fxq.export(chain(), tmp_path / "out", format="pt2e", target="xnnpack")
    (only,) = report.substitutions["model"]
    assert (only.name, only.path, only.exact) == ("per-token dynamic", "third", False)
    assert "uint8 per-tensor becomes int8 per-token" in report.summary()


def test_weights_alone_become_products_of_integers(tmp_path):
    dialect = fxq.to_pt2e(converted("weight-only"), target="xnnpack")
    assert operators(dialect) == EXPECTED["dynamic"]
    float_like = converted("weight-only")(**named())["hidden"]
    error = (dialect(**named())["hidden"] - float_like).abs().max()
    assert 0 < error < 0.05 * float_like.abs().max()
    report = fxq.export(converted("weight-only"), tmp_path / "out", format="pt2e", target="xnnpack")
    assert {(each.name, each.exact) for each in report.substitutions["model"]} == {("int8 activations", False)}


def test_what_xnnpack_cannot_express(tmp_path):
    text = r"%linear \(.*\) in module layers\.0\.q cannot be written for xnnpack: .* int4 per-group 32, affine: .* symm"
    with pytest.raises(fxq.ExportError, match=text):
        fxq.export(converted("weight-only-int4"), tmp_path / "out", format="pt2e", target="xnnpack")
    assert not (tmp_path / "out").exists()


def test_graph_that_is_not_quantized():
    with pytest.raises(fxq.ExportError, match="to_pt2e takes one graph, got a Program"):
        fxq.to_pt2e(fxq.Program({"forward": converted("static")}))
    with pytest.raises(fxq.ExportError, match="captured and not quantized"):
        fxq.to_pt2e(captured())
    with pytest.raises(fxq.ConfigError, match="unknown target 'xnpack': did you mean 'xnnpack'"):
        fxq.to_pt2e(converted("static"), target="xnpack")
