"""FxQuantizer in Optimum's way: what it writes is loaded by transformers, and its configuration by Optimum."""

import pytest
import torch

pytest.importorskip("optimum")

import transformers
from folders import SENTENCES, write_bert
from optimum.quantization_base import OptimumQuantizer

import fxquant as fxq
from fxquant.integrations.optimum import FxQuantizer, QConfig, QConfigUnit, QuantizationConfig

CAREFUL = QConfig(activation=QConfigUnit("quint8", calibration_method="moving_average", averaging_constant=0.1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_bert(tmp_path_factory.mktemp("bert"), transformers.BertForSequenceClassification)


@pytest.fixture(scope="module")
def batches(folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return [dict(tokenizer(SENTENCES[at : at + 4], return_tensors="pt", padding=True)) for at in (0, 4)]


def test_static_model_is_written_for_transformers(folder, batches, tmp_path):
    config = QuantizationConfig("static", CAREFUL, module_name=[["classifier", None]])
    quantizer = FxQuantizer.from_pretrained(folder)
    assert isinstance(quantizer, OptimumQuantizer)
    quantized = quantizer.fit(batches).quantize(tmp_path, quantization_config=config, strict=True)
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(again(**batches[0]).logits, quantized(**batches[0]).logits)
    expected = quantizer.model(**batches[0]).logits
    assert 0 < (again(**batches[0]).logits - expected).abs().max() < 0.05 * expected.abs().max()
    stored = QuantizationConfig.from_pretrained(tmp_path)
    assert stored.recipe() == config.recipe()
    rows = {row.module_path: row for row in fxq.ledger(again.fxquant).rows if row.family == "linear"}
    assert [path for path, row in rows.items() if not row.quantized] == ["classifier"]


def test_dynamic_is_the_default_and_a_prefix_is_a_variant(folder, batches, tmp_path):
    quantizer = FxQuantizer.from_pretrained(str(folder))
    quantized = quantizer.quantize(tmp_path, file_prefix="int8")
    assert (tmp_path / "model.int8.safetensors").is_file()
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, variant="int8")
    assert torch.equal(again(**batches[0]).logits, quantized(**batches[0]).logits)


def test_specs_that_a_configuration_means():
    assert CAREFUL.specs("static") == {
        "activation": {
            "dtype": "uint8",
            "symmetric": False,
            "dynamic": False,
            "granularity": "per-tensor",
            "observer": "moving_average",
            "options": {"averaging_constant": 0.1},
        },
        "weight": {
            "dtype": "int8",
            "symmetric": True,
            "dynamic": False,
            "granularity": "per-channel",
            "axis": 0,
            "observer": "minmax",
            "options": {},
        },
    }
    assert CAREFUL.specs("dynamic")["activation"]["granularity"] == "per-token"
    assert list(CAREFUL.specs("weight-only")) == ["weight"]
    unit = QConfigUnit(
        torch.qint8, symmetric=True, quant_min=-128, quant_max=127, calibration_method="histogram", bins=512
    )
    assert unit.changes(dynamic=False) == {
        "dtype": "int8",
        "symmetric": True,
        "range": "full",
        "dynamic": False,
        "granularity": "per-tensor",
        "observer": "histogram",
        "options": {"method": "mse", "bins": 512},
    }
    assert QConfigUnit("qint8", quant_min=-8, quant_max=7).changes(dynamic=True)["dtype"] == "int4"
    assert QConfigUnit.from_dict({**unit.to_dict(), "upsample_rate": 128}) == unit


def test_names_come_before_types_before_the_model():
    config = QuantizationConfig(
        "dynamic", CAREFUL, module_name=[["bert.pooler.*", CAREFUL]], object_type=[["torch.nn.Embedding", None]]
    )
    overrides = config.recipe().overrides
    assert [(each.path, each.op, each.quantize) for each in overrides] == [
        ("bert.pooler.*", "*", True),
        ("*", "embedding*", False),
    ]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QConfigUnit("qint32"), "dtype = 'qint32' is no known dtype"),
        (lambda: QConfigUnit(quant_min=0, quant_max=127), r"\(0, 127\): affine quint8 is \[0, 255\] or \[0, 15\] here"),
        (lambda: QConfigUnit(calibration_method="entropy"), "is no known calibration method"),
        (lambda: QConfigUnit(symmetric=1), "symmetric = 1: expected true or false"),
        (lambda: QuantizationConfig("qat"), "approach = 'qat' is no known approach"),
        (lambda: QuantizationConfig(object_type=[["torch.nn.LSTM", None]]), "'LSTM' is no known type of modules"),
        (lambda: QuantizationConfig(qconfig={"weights": {}}), "unknown key 'weights': did you mean 'weight'"),
    ],
    ids=["dtype", "narrow range", "method", "no boolean", "approach", "type", "key"],
)
def test_what_has_no_meaning_here(make, message):
    with pytest.raises(fxq.ConfigError, match=message):
        make()


def test_nothing_is_written_of_a_checkpoint_with_other_shapes(folder, tmp_path):
    broken = tmp_path / "broken"
    config = transformers.AutoConfig.from_pretrained(folder, intermediate_size=48)
    config.save_pretrained(broken)
    (broken / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(fxq.DataError, match=r"has shape \(64,\) in the checkpoint, and config.json asks for \(48,\)"):
        FxQuantizer.from_pretrained(broken).quantize(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_where_quantizing_fails(folder, tmp_path):
    quantizer = FxQuantizer.from_pretrained(folder)
    with pytest.raises(fxq.ConfigError, match="give calibration="):
        quantizer.quantize(tmp_path / "out", quantization_config=QuantizationConfig("static"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(fxq.ConfigError, match=r"file_name = 'model.bin': leave it out"):
        FxQuantizer.from_pretrained(folder, "model.bin")
