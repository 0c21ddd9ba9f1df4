"""fxquant's recipes in torchao's prepare_pt2e and convert_pt2e: the numbers of fxquant's own flow, in and out again."""

import importlib
import sys

import pytest
import torch
from pt2e_graphs import LINEARS, converted, exported, inputs, named

import fxquant as fxq

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # of torchao's own code
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def quantized(recipe, backend="x86", batches=3, model=exported):
    """Return what torchao's flow makes of a model, and the quantizer."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    from fxquant.integrations.pt2e.quantizer import FxQuantizer

    quantizer = FxQuantizer(recipe, backend)
    prepared = prepare_pt2e(model(), quantizer)
    for seed in range(batches):
        prepared(*inputs(4, 8, seed))
    return convert_pt2e(prepared), quantizer


@pytest.mark.parametrize("recipe", ["static", "dynamic"])
def test_torchao_makes_what_fxquant_does(torchao, recipe):
    graph, quantizer = quantized(recipe)
    ours = converted(recipe)
    rows = [row for row in quantizer.ledger.rows if row.family == "linear"]
    assert len(rows) == LINEARS
    assert all(row.quantized for row in rows)
    assert {row.module_path for row in rows} >= {"layers.0.q", "pool"}
    assert not [node for node in graph.graph.nodes if str(node.target).startswith("fxquant.")]
    bound = 0.01 if recipe == "dynamic" else 1e-5  # where zero points of tokens may be rounded the other way
    for name, value in ours(**named(3, 9, 1)).items():
        torch.testing.assert_close(graph(*inputs(3, 9, 1))[name], value, rtol=0, atol=bound)
    lowered = fxq.lower(graph, "reference")
    assert fxq.ledger(lowered).share("linear") == 1.0
    torch.testing.assert_close(lowered(*inputs())["hidden"], graph(*inputs())["hidden"], rtol=0, atol=max(bound, 1e-4))


def test_nothing_observed_is_told(torchao):
    with pytest.raises(fxq.CalibrationError, match=r"%\w+: .*observ"):
        quantized("static", batches=0)


def test_nothing_quantized_is_told(torchao):
    recipe = {"base": "dynamic", "override": [{"path": "*", "quantize": False}]}
    with pytest.raises(fxq.ConfigError, match=r"for x86 quantizes no op of the model; `ledger`"):
        quantized(recipe)


def test_missing_package_is_named(monkeypatch):
    name = "fxquant.integrations.pt2e.quantizer"
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "torchao.quantization.pt2e.quantizer", None)
    with pytest.raises(fxq.MissingExtraError, match=r"pip install 'fxquant\[pt2e\]'"):
        importlib.import_module(name)


def test_float8_has_no_operators(torchao):
    with pytest.raises(fxq.ConfigError, match="PT2E has no operators for float8_e4m3fn per-token"):
        quantized("fp8", "reference")
