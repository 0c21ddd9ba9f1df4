"""Graphs as compressed-tensors checkpoints, in its own loader of transformers; what is refused."""

import json

import foreign
import pytest
import torch
import transformers
from foreign import CHANNEL, GROUPS, quantized
from safetensors.torch import load_file

import fxquant as fxq
from fxquant.integrations.checkpoints.collect import collect
from fxquant.integrations.checkpoints.compressed import read_compressed
from fxquant.integrations.checkpoints.folder import open_folder

WHOLE = {"granularity": "per-tensor", "symmetric": True}
TOKEN = {"granularity": "per-token", "dynamic": True}
INT8 = {"dtype": "int8", **CHANNEL}
# no loader of compressed-tensors takes activations per token without tokens, as the pooler's and classifier's are
FLOAT = [fxq.Override(path="*.pooler.*", quantize=False), fxq.Override(path="classifier", quantize=False)]
SCHEMES = {
    "int8": (INT8, "float", "x86", "pack-quantized"),
    "int8 groups": ({"dtype": "int8", **GROUPS, "symmetric": True}, "float", "x86", "pack-quantized"),
    "int4 groups": ({"dtype": "int4", **GROUPS, "symmetric": True}, "float", "x86", "pack-quantized"),
    "uint4 groups": ({"dtype": "uint4", **GROUPS, "symmetric": True}, "float", "x86", "pack-quantized"),
    "int8, int8 tokens": (INT8, {"dtype": "int8", "symmetric": True, "range": "full", **TOKEN}, "x86", "int-quantized"),
    "float8": (
        {"dtype": "float8_e4m3fn", **WHOLE}, {"dtype": "float8_e4m3fn", **TOKEN, "symmetric": True}, "reference",
        "float-quantized",
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _compressed_tensors():
    pytest.importorskip("compressed_tensors")


def mask():
    return torch.ones_like(foreign.IDS)


def static(bert, weight, activation):
    recipe = fxq.Recipe(specs={"weight": weight, "activation": activation}, overrides=FLOAT)
    prepared = fxq.prepare(bert, "x86", recipe)
    batch = {"input_ids": foreign.IDS, "attention_mask": mask()}
    return fxq.convert(fxq.calibrate(prepared, [batch], progress=False))


def theirs(folder):
    """Return what transformers and compressed-tensors compute."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        return model(input_ids=foreign.IDS, attention_mask=mask()).logits


def ours(graph):
    return graph(input_ids=foreign.IDS, attention_mask=mask()).logits


@pytest.mark.parametrize("weight, activation, backend, form", SCHEMES.values(), ids=SCHEMES)
def test_transformers_loads_it_and_computes_what_the_graph_does(bert, tmp_path, weight, activation, backend, form):
    graph = quantized(bert, weight, FLOAT, activation, backend)
    fxq.export(graph, tmp_path / "out", format="compressed-tensors")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["format"] == form
    assert config["ignore"] == ["bert.pooler.dense", "classifier"]
    assert torch.allclose(theirs(tmp_path / "out"), ours(graph), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_static_inputs_keep_their_scale_and_zero_point(bert, tmp_path, dtype):
    inputs = {"dtype": dtype, "granularity": "per-tensor", "dynamic": False, "observer": "minmax"}
    graph = static(bert, INT8, inputs)
    fxq.export(graph, tmp_path / "out", format="compressed-tensors")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    layer = collect([graph])[0]["bert.encoder.layer.0.intermediate.dense.weight"].layer
    path = "bert.encoder.layer.0.intermediate.dense"
    assert tensors[f"{path}.input_scale"].item() == layer.activation_qparams.scale.item()
    shift = 128 if dtype == "uint8" else 0
    assert tensors[f"{path}.input_zero_point"].item() == layer.activation_qparams.zero_point.item() - shift
    assert torch.allclose(theirs(tmp_path / "out"), ours(graph), rtol=1e-5, atol=1e-6)


def test_zero_points_in_words_are_those_of_its_decompressor(bert, tmp_path):
    from compressed_tensors.compressors.base import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    graph = quantized(bert, {"dtype": "int4", **GROUPS, "symmetric": False})
    report = fxq.export(graph, tmp_path / "out", format="compressed-tensors")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    scheme = QuantizationScheme(**config["config_groups"]["group_0"])
    tensors, stored = load_file(tmp_path / "out" / "model.safetensors"), collect([graph])[0]
    for path in ("bert.encoder.layer.0.output.dense", "bert.pooler.dense"):
        parts = {name: tensors[f"{path}.{name}"] for name in ("weight_packed", "weight_scale", "weight_zero_point")}
        parts["weight_shape"] = tensors[f"{path}.weight_shape"]
        found = BaseCompressor.get_value_from_registry("pack-quantized").decompress(parts, scheme)
        assert torch.equal(found["weight"], stored[f"{path}.weight"].layer.values())
    tables = {each.path for each in report.substitutions["model"] if each.name == "float weight"}
    assert tables == {f"bert.embeddings.{name}_embeddings" for name in ("word", "position", "token_type")}


def test_modules_of_several_schemes_are_named_in_groups(bert, tmp_path):
    narrow = {"dtype": "int4", **GROUPS, "symmetric": True}
    overrides = [fxq.Override(path="*.output.dense", specs={"weight": narrow}), *FLOAT]
    graph = quantized(bert, INT8, overrides)
    fxq.export(graph, tmp_path / "out", format="compressed-tensors")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    sizes = {len(group["targets"]): group["weights"]["num_bits"] for group in config["config_groups"].values()}
    assert sizes == {4: 8, 2: 4}
    layers = read_compressed(open_folder(tmp_path / "out"), config, foreign.bert())
    stored = collect([graph])[0]
    assert all(torch.equal(layer.values(), stored[f"{path}.weight"].layer.values()) for path, layer in layers.items())


def test_symmetric_inputs_of_a_restricted_range_are_substituted(bert, tmp_path):
    graph = quantized(bert, INT8, FLOAT, {"dtype": "int8", "symmetric": True, **TOKEN})
    report = fxq.export(graph, tmp_path / "out", format="compressed-tensors")
    found = [each for each in report.substitutions["model"] if each.name == "whole range"]
    assert len(found) == 6
    assert not any(each.exact for each in found)


def test_what_the_format_does_not_hold_is_refused(bert, ordered, tmp_path):
    def refuses(graph, message, **options):
        with pytest.raises(fxq.FxQuantError, match=message):
            fxq.export(graph, tmp_path / "out", format="compressed-tensors", **options)
        assert not (tmp_path / "out").exists()

    refuses(
        quantized(bert, {"dtype": "int4", **GROUPS, "group_size": 24}), "in groups of 24, the last of which is short"
    )
    refuses(ordered[2], "which compressed-tensors no longer reads: export format gptq")
    refuses(quantized(bert, INT8), "target 'x': compressed-tensors has no targets", target="x")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(fxq.ExportError, match=r"holds notes\.txt and no export"):
        fxq.export(quantized(bert, INT8), tmp_path, format="compressed-tensors")
