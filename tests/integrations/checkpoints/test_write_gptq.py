"""Graphs as GPTQ checkpoints: what was read is written again, what is written is read again, and what is refused."""

import json

import foreign
import pytest
import torch
from foreign import CHANNEL, GROUPS, quantized
from safetensors.torch import load_file
from torch import nn

import fxquant as fxq
from fxquant.cli import main
from fxquant.integrations.checkpoints.collect import collect
from fxquant.integrations.checkpoints.folder import open_folder
from fxquant.integrations.checkpoints.gptq import read_gptq


def read(folder):
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    return read_gptq(open_folder(folder), config, nn.Module()), config


@pytest.mark.parametrize("target", [None, "gptq_v2"])
def test_what_was_read_is_written_again(ordered, tmp_path, target):
    folder, _, program = ordered
    fxq.export(program, tmp_path / "out", format="gptq", target=target)
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    different = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.rpartition(".")[2] for name in different} == (set() if target is None else {"qzeros"})
    assert all(before[name].dtype == after[name].dtype for name in before)
    layers, config = read(tmp_path / "out")
    assert all(torch.equal(each.values(), read(folder)[0][path].values()) for path, each in layers.items())
    assert (config["desc_act"], config["sym"], config["checkpoint_format"]) == (True, False, target or "gptq")
    assert "modules_in_block_to_quantize" not in config
    assert json.loads((tmp_path / "out" / "quantize_config.json").read_text()) == config


SPECS = {
    "int4 groups, affine": ({"dtype": "int4", **GROUPS, "symmetric": False}, 4, 16, False),
    "int4 groups, symmetric": ({"dtype": "int4", **GROUPS, "symmetric": True}, 4, 16, True),
    "uint4 groups": ({"dtype": "uint4", **GROUPS, "symmetric": False}, 4, 16, False),
    "int8 channels": ({"dtype": "int8", **CHANNEL}, 8, -1, True),
    "int8 groups": ({"dtype": "int8", **GROUPS, "symmetric": False}, 8, 16, False),
    "int8 tensor": ({"dtype": "int8", "granularity": "per-tensor", "symmetric": True}, 8, -1, True),
}


@pytest.mark.parametrize("spec, bits, size, symmetric", SPECS.values(), ids=SPECS)
def test_weights_of_a_graph_are_those_of_its_checkpoint(bert, tmp_path, spec, bits, size, symmetric):
    graph = quantized(bert, spec)
    report = fxq.export(graph, tmp_path / "out", format="gptq")
    layers, config = read(tmp_path / "out")
    stored, _ = collect([graph])
    assert len(layers) == 6
    assert all(torch.equal(layer.values(), stored[f"{path}.weight"].layer.values()) for path, layer in layers.items())
    assert (config["bits"], config["group_size"], config["sym"]) == (bits, size, symmetric)
    floats = {each.path for each in report.substitutions["model"]}
    assert floats >= {"classifier", "bert.pooler.dense", "bert.embeddings.word_embeddings"}
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(tensors["classifier.weight"], stored["classifier.weight"].layer.values())


def test_modules_in_float_are_named_in_the_configuration(bert, tmp_path):
    overrides = [fxq.Override(path="*.intermediate.dense", quantize=False)]
    fxq.export(quantized(bert, SPECS["int4 groups, affine"][0], overrides), tmp_path / "out", format="gptq")
    layers, config = read(tmp_path / "out")
    assert not any("intermediate" in path for path in layers)
    (names,) = config["modules_in_block_to_quantize"]
    assert sorted(names) == [
        "attention.output.dense", "attention.self.key", "attention.self.query", "attention.self.value", "output.dense",
    ]  # fmt: skip


def test_checkpoint_is_a_whole_model(ordered, tmp_path, capsys):
    """An artifact, lowered or not, is exported by the command; its checkpoint computes what it does."""
    _, _, qdq = ordered
    fxq.save(fxq.lower(qdq), tmp_path / "artifact")
    command = ["export", str(tmp_path / "artifact"), str(tmp_path / "out"), "--format", "gptq"]
    assert main(command) == 0
    assert "wrote config.json, generation_config.json, model.safetensors, quantize_config" in capsys.readouterr().out
    again = fxq.load_checkpoint(tmp_path / "out", lower=False)
    assert torch.equal(again(input_ids=foreign.IDS).logits, qdq(input_ids=foreign.IDS).logits)


REFUSED = {
    "inputs": (
        {"weight": {"dtype": "int8", **CHANNEL}, "activation": {}},
        "quantizes its inputs, and GPTQ checkpoints",
    ),
    "several schemes": (
        {
            "weight": {"dtype": "int8", **CHANNEL},
            "overrides": [fxq.Override(path="*.output.dense", specs={"weight": {"dtype": "int4", **GROUPS}})],
        },
        "has one scheme for all linears, the graph has several: .*: 8 bits, group_size -1; .*: 4 bits, group_size 16",
    ),
}


@pytest.mark.parametrize("options, message", REFUSED.values(), ids=REFUSED)
def test_graphs_that_the_format_does_not_hold_are_refused(bert, tmp_path, options, message):
    with pytest.raises(fxq.ExportError, match=message):
        fxq.export(quantized(bert, **options), tmp_path / "out", format="gptq")
    assert list(tmp_path.iterdir()) == []


def test_a_version_or_a_model_that_is_not_known(bert, tmp_path):
    graph = quantized(bert, SPECS["int8 channels"][0])
    with pytest.raises(fxq.ConfigError, match=r"target 'gptq_v3' is no version of GPTQ checkpoints: .*gptq_v2"):
        fxq.export(graph, tmp_path / "out", format="gptq", target="gptq_v3")
    plain = fxq.quantize(nn.Sequential(nn.Linear(32, 32)), (torch.ones(1, 32),), recipe="weight-only")
    with pytest.raises(fxq.ExportError, match="knows no configuration of transformers"):
        fxq.export(plain, tmp_path / "out", format="gptq")
    with pytest.raises(fxq.ExportError, match="no weight of the graph is quantized in a way that the format has"):
        fxq.export(quantized(bert, "float", activation="float"), tmp_path / "out", format="gptq")
    assert list(tmp_path.iterdir()) == []
