"""FxQuantizer in the exporters of transformers: what they export is quantized, and near the float model."""

from collections import Counter

import models
import pytest
import torch
import transformers

import fxquant as fxq

pytest.importorskip("transformers.exporters.quantizers", reason="transformers exports without quantizers before 5.23")
from transformers.exporters.auto import get_exporter_class
from transformers.exporters.configs import DynamoConfig, ExecutorchConfig, OnnxConfig, OpenVINOConfig

from fxquant.integrations.transformers import FxQuantizer

BATCHES = [models.encoder_inputs(seed=seed) for seed in range(3)]
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # of the exporters' own code
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def classifier():
    """A BERT of one layer with a head, and its inputs."""
    config = transformers.BertConfig(**{**models._ENCODER, "num_hidden_layers": 1}, num_labels=3)
    return models._random(transformers.BertForSequenceClassification, config), models.encoder_inputs()


@pytest.fixture(autouse=True)
def _quiet():
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity_warning()


def export(name, config, model, inputs):
    return get_exporter_class(name)().export(model, dict(inputs), config)


def check_near(found, model, inputs, bound=0.05):
    expected = model(**inputs).logits
    assert 0 < (found.logits - expected).abs().max() < bound * expected.abs().max()


def test_dynamo_program_has_the_operators_of_static_quantization(classifier):
    model, inputs = classifier
    quantizer = FxQuantizer("static", calibration_dataset=BATCHES, modules_to_not_convert=["classifier"], strict=True)
    program = export("dynamo", DynamoConfig(dynamic=True, quantizer=quantizer), model, inputs).program
    targets = Counter(str(node.target) for node in program.graph.nodes)
    assert not [name for name in targets if name.startswith("fxquant")]
    assert (
        targets["quantized_decomposed.dequantize_per_channel.default"] == 14
    )  # weight and bias of all linears but the head
    assert targets["quantized_decomposed.quantize_per_tensor.default"] >= 4
    weights = {
        str(value.dtype) for name, value in program.state_dict.items() if "intermediate" in name and value.ndim == 2
    }
    assert weights == {"torch.int8"}
    check_near(program.module()(**inputs), model, inputs)
    other = models.encoder_inputs(3, 7, seed=9)
    check_near(program.module()(**other), model, other)
    kept = {row.module_path: row.code for row in quantizer.ledger.rows if row.family == "linear"}
    assert kept["classifier"] == "float-by-recipe"
    assert sum(code == "float-by-recipe" for code in kept.values()) == 1


def test_exported_program_computes_what_fxquant_does(classifier):
    model, inputs = classifier
    program = export("dynamo", DynamoConfig(quantizer=FxQuantizer("dynamic")), model, inputs).program
    own = fxq.quantize(model, inputs, backend="reference", recipe="dynamic")
    torch.testing.assert_close(program.module()(**inputs).logits, own(**inputs).logits, rtol=1e-3, atol=1e-5)


@torch.no_grad()
def test_decoding_step_with_a_cache():
    model, inputs = models.llama()
    ids = inputs["input_ids"]
    step = {"input_ids": ids[:, 4:5], "past_key_values": model(ids[:, :4], use_cache=True).past_key_values}
    program = export("dynamo", DynamoConfig(quantizer=FxQuantizer("weight-only")), model, step).program
    outputs = program.module()(**step)
    assert outputs.past_key_values.layers[0].keys.shape[2] == 5
    check_near(outputs, model, {"input_ids": ids[:, :5], "logits_to_keep": 1})


IN_GROUPS = fxq.Recipe(base="weight-only-int4", specs={"weight": {"group_size": 16}})


@pytest.mark.parametrize(
    ("recipe", "operator", "bound"),
    [("static", "QuantizeLinear", 0.05), ("dynamic", "DynamicQuantizeLinear", 0.05), (IN_GROUPS, "MatMulNBits", 0.5)],
    ids=["static", "dynamic", "4 bits"],
)
def test_onnx_model_runs(classifier, recipe, operator, bound):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, inputs = classifier
    quantizer = FxQuantizer(recipe, "x86", calibration_dataset=BATCHES)
    exported = export("onnx", OnnxConfig(quantizer=quantizer), model, inputs)
    operators = Counter(node.op_type for node in exported.program.graph)
    linears = sum(row.family == "linear" and row.quantized for row in quantizer.ledger.rows)
    merged = sum(each.name == "merged product" for each in quantizer.substitutions)
    assert (linears, merged) == (8, 2)
    if recipe is IN_GROUPS:
        assert operators[operator] == linears - merged
    else:
        assert operators[operator] >= 4
        assert operators["DequantizeLinear"] >= linears - merged + operators[operator]
    check_near(exported(**inputs), model, inputs, bound)


def test_openvino_model_runs(classifier):
    pytest.importorskip("openvino")
    model, inputs = classifier
    config = OpenVINOConfig(quantizer=FxQuantizer("static", calibration_dataset=BATCHES))
    exported = export("openvino", config, model, inputs)
    assert "FakeQuantize" in {op.get_type_name() for op in exported.program.get_ops()}
    check_near(exported(**inputs), model, inputs)


@pytest.mark.slow
def test_executorch_program_runs(classifier):
    pytest.importorskip("executorch.exir")
    pytest.importorskip("torchao")
    model, inputs = classifier
    config = ExecutorchConfig(quantizer=FxQuantizer("static", calibration_dataset=BATCHES))
    check_near(export("executorch", config, model, inputs)(**inputs), model, inputs)


def test_batch_of_another_structure(classifier):
    model, inputs = classifier
    quantizer = FxQuantizer("static", calibration_dataset=[{"input_ids": inputs["input_ids"]}])
    with pytest.raises(ValueError, match="lacks the traced inputs"):
        export("dynamo", DynamoConfig(quantizer=quantizer), model, inputs)


def test_older_transformers_is_named(monkeypatch):
    import fxquant.integrations.transformers as ours
    from fxquant.integrations import packages

    monkeypatch.setattr(packages, "version", lambda _: "5.22.1")
    with pytest.raises(
        fxq.MissingExtraError, match=r"FxQuantizer.*needs transformers 5.23 or newer, found 5.22.1: pip"
    ):
        _ = ours.FxQuantizer
    with pytest.raises(AttributeError, match="has no attribute 'FxQuantiser'"):
        _ = ours.FxQuantiser
