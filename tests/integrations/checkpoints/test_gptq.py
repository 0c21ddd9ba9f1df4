"""GPTQ checkpoints: the weights that their tensors stand for, the graphs that they become, and what is refused."""

import json

import foreign
import generative
import pytest
import torch
from foreign import IDS
from safetensors.torch import load_file, save_file

import fxquant as fxq
from fxquant.graph import edit
from fxquant.integrations.checkpoints.folder import open_folder
from fxquant.integrations.checkpoints.gptq import PARTS, read_gptq
from fxquant.integrations.checkpoints.load import read_layers
from fxquant.integrations.checkpoints.model import build_model, make_skeleton

NONE = torch.nn.Module()
UP = "model.layers.0.mlp.up_proj"
SCHEMES = {
    "4 bits": {},
    "4 bits, version 2": {"version": 2},
    "4 bits, symmetric": {"sym": True},
    "4 bits, ordered": {"act": True, "group": 8},
    "4 bits, one group": {"group": -1},
    "4 bits, ordered, one group": {"group": -1, "act": True, "sym": True},
    "4 bits, a short last group": {"group": 24},
    "8 bits": {"bits": 8},
    "8 bits, symmetric, ordered": {"bits": 8, "sym": True, "act": True},
    "8 bits, one group, version 2": {"bits": 8, "group": -1, "version": 2},
}


@pytest.fixture
def folder(tmp_path):
    """A folder that a test may damage, and its tensors."""
    return tmp_path, foreign.write_gptq(tmp_path, foreign.llama())


def write_layer(folder, parts, **scheme):
    """Write a folder of one linear `layer`."""
    (folder / "config.json").write_text(json.dumps({}))
    save_file({f"layer.{name}": tensor for name, tensor in parts.items()}, folder / "model.safetensors")
    return {"bits": 4, "group_size": 16, **scheme}


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_weights_are_those_of_the_tensors_to_the_bit(tmp_path, scheme):
    parts, weight = foreign.gptq_layer(48, 16, **scheme, generator=torch.Generator().manual_seed(1))
    config = write_layer(tmp_path, parts, bits=scheme.get("bits", 4), group_size=scheme.get("group", 16))
    config["checkpoint_format"] = "gptq" if scheme.get("version", 1) == 1 else "gptq_v2"
    layer = read_gptq(open_folder(tmp_path), config, NONE)["layer"]
    assert torch.equal(layer.values(), weight)
    assert layer.weight.symmetric == scheme.get("sym", False)
    assert (layer.order is None) == (not scheme.get("act") or scheme.get("group") == -1)


def test_graph_computes_what_the_float_model_of_these_weights_does(ordered):
    _, model, program = ordered
    found, expected = program(input_ids=IDS).logits, model(input_ids=IDS).logits
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_graph_holds_the_integers_of_the_file_in_their_order(ordered):
    folder, _, program = ordered
    layer = read_gptq(open_folder(folder), {"bits": 4, "group_size": 16, "desc_act": True}, NONE)[
        "model.layers.0.mlp.up_proj"
    ]
    packed = edit.constants(program.graphs["step"])[f"{UP}.weight_uint4"]
    assert torch.equal(torch.stack((packed & 15, packed >> 4), -1).flatten(-2), layer.integers)


def test_linears_that_read_one_value_share_its_order(ordered):
    program = ordered[2]
    gathers = [
        node for node in program.graphs["step"].graph.nodes if node.target is torch.ops.aten.index_select.default
    ]
    assert len(gathers) == 4  # of attention's input, its values, the gate's and the last linear's input


def test_lowered_program_generates_and_comes_back_from_an_artifact(ordered, tmp_path):
    _, model, qdq = ordered
    program = fxq.lower(qdq)
    rows = [row for row in fxq.ledger(program).rows if row.op.startswith("linear") and row.kernel]
    assert len(rows) == 7
    assert all("packed_linear_weight_only" in row.kernel for row in rows)
    assert torch.allclose(program(input_ids=IDS).logits, model(input_ids=IDS).logits, atol=0.02)
    greedy = {"attention_mask": torch.ones_like(IDS), "max_new_tokens": 6, "do_sample": False}
    assert torch.equal(program.generate(IDS, **greedy), model.generate(IDS, **greedy))
    fxq.save(program, tmp_path / "artifact")
    assert torch.equal(fxq.load(tmp_path / "artifact")(input_ids=IDS).logits, program(input_ids=IDS).logits)


def test_linears_that_hold_their_weight_transposed(tmp_path):
    model = generative.decoder("gpt2")
    foreign.write_gptq(tmp_path, model, bits=8)
    folder = open_folder(tmp_path)
    skeleton = make_skeleton(folder, None)
    layers = read_layers(folder, skeleton)[1]
    own = frozenset(f"{path}.{part}" for path in layers for part in PARTS)
    found = build_model(folder, skeleton, layers, own)
    assert type(found.transformer.h[0].mlp.c_fc) is torch.nn.Linear
    with torch.no_grad():
        assert torch.allclose(found(IDS).logits, model(IDS).logits, rtol=1e-5, atol=1e-6)


def test_shards_and_a_configuration_beside_config_json(tmp_path):
    model = foreign.llama()
    tensors = foreign.write_gptq(tmp_path, model)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "quantize_config.json").write_text(json.dumps(config.pop("quantization_config")))
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").unlink()
    files = {name: f"model-{number % 2}.safetensors" for number, name in enumerate(tensors)}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in files if files[name] == file}, tmp_path / file, {"format": "pt"})
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    method, layers = read_layers(open_folder(tmp_path), model)
    assert method == "gptq"
    assert torch.equal(layers[UP].values(), model.model.layers[0].mlp.up_proj.weight)


def test_modules_of_their_own_schemes(tmp_path):
    generator = torch.Generator().manual_seed(2)
    first, wide = foreign.gptq_layer(32, 16, bits=8, group=-1, generator=generator)
    second, narrow = foreign.gptq_layer(32, 16, generator=generator)
    config = write_layer(tmp_path, first, dynamic={"+:lay.*": {"bits": 8, "group_size": -1}, "-:never": {}})
    tensors = {f"other.{name}": tensor for name, tensor in second.items()}
    save_file(tensors | load_file(tmp_path / "model.safetensors"), tmp_path / "model.safetensors")
    layers = read_gptq(open_folder(tmp_path), config, NONE)
    assert torch.equal(layers["layer"].values(), wide)
    assert torch.equal(layers["other"].values(), narrow)


DAMAGES = {
    "a missing tensor": ({f"{UP}.scales": None}, rf"the tensor {UP}.scales is missing"),
    "scales of other groups": ({f"{UP}.scales": torch.ones(3, 64)}, r"scales has shape \(3, 64\): expected \(2, 64\)"),
    "integers that are none": ({f"{UP}.qzeros": torch.ones(2, 8)}, r"qzeros is torch.float32: expected int32"),
    "another number of inputs": (
        {
            f"{UP}.qweight": torch.zeros(8, 64, dtype=torch.int32),
            f"{UP}.g_idx": torch.zeros(64, dtype=torch.int32),
            f"{UP}.qzeros": torch.zeros(4, 8, dtype=torch.int32),
            f"{UP}.scales": torch.ones(4, 64),
        },
        r"g_idx puts 64 columns into group 0: expected group_size = 16",
    ),
    "a group out of range": ({f"{UP}.g_idx": torch.arange(32).int() // 15}, "g_idx names groups 0 to 2: expected 0"),
    "groups of other sizes": ({f"{UP}.g_idx": torch.arange(32).int() // 20}, "g_idx puts 20 columns into group 0"),
    "a float weight that is missing": ({"model.norm.weight": None}, "the tensor model.norm.weight is missing"),
    "a float weight of another shape": ({"model.norm.weight": torch.ones(3)}, r"has shape \(3,\): expected \(32,\)"),
    "a module that the model lacks": (
        {f"other.{part}": tensor for part, tensor in foreign.gptq_layer(32, 8, generator=None)[0].items()},
        "quantizes other: expected a linear or embedding, and the LlamaForCausalLM of this transformers has nothing",
    ),
    "a module of another shape": (
        {f"{UP}.{part}": tensor for part, tensor in foreign.gptq_layer(64, 8, generator=None)[0].items()},
        rf"the weight of {UP} is \(8, 64\), and config.json asks for \(64, 32\)",
    ),
    "a bias that the model lacks": ({f"{UP}.bias": torch.ones(64)}, rf"{UP} has no bias"),
}  # fmt: skip


@pytest.mark.parametrize("changes, message", DAMAGES.values(), ids=DAMAGES)
def test_tensors_that_do_not_fit_are_refused(folder, changes, message):
    path, tensors = folder
    kept = {name: tensor for name, tensor in {**tensors, **changes}.items() if tensor is not None}
    save_file(kept, path / "model.safetensors", {"format": "pt"})
    with pytest.raises(fxq.DataError, match=message):
        fxq.load_checkpoint(path)


CONFIGS = {
    "bits": ({"bits": 3}, "quantization_config: bits = 3 cannot be read: fxquant has integers of 4 and 8 bits"),
    "group_size": ({"group_size": 0}, "group_size = 0: expected a positive integer, or −1"),
    "another group_size": ({"group_size": 8}, r"qzeros has shape \(4, 4\): expected \(8, 4\)"),
    "format": ({"checkpoint_format": "gptq_p"}, "format = 'gptq_p' cannot be read: expected gptq or gptq_v2"),
    "marlin": ({"is_marlin_format": True}, "format = 'marlin' cannot be read"),
    "pack_dtype": ({"pack_dtype": "int16"}, "pack_dtype = 'int16' cannot be read"),
    "quant_method": ({"quant_method": "awq"}, "quant_method = 'awq' cannot be read: .*Known: .*gptq"),
    "pattern": ({"dynamic": {"+:(": {}}}, r"dynamic: '\+:\(' is no regular expression"),
    "float module": ({"dynamic": {"-:.*up_proj": {}}}, "up_proj.qweight: quantization_config says that this module"),
}


@pytest.mark.parametrize("changes, message", CONFIGS.values(), ids=CONFIGS)
def test_configurations_that_cannot_be_read_are_refused(folder, changes, message):
    path, _ = folder
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] |= changes
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(fxq.DataError, match=message):
        fxq.load_checkpoint(path)


def test_files_that_are_damaged_or_not_there(folder):
    path, _ = folder
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(fxq.DataError, match=r"model\.safetensors is damaged or incomplete"):
        fxq.load_checkpoint(path)
    weights.unlink()
    with pytest.raises(fxq.DataError, match=r"has no \*\.safetensors"):
        fxq.load_checkpoint(path)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../b.safetensors"}}))
    with pytest.raises(fxq.DataError, match=r"names the file '\.\./b\.safetensors', which is not in the folder"):
        fxq.load_checkpoint(path)


def test_float_model_is_no_checkpoint(tmp_path):
    foreign.llama().save_pretrained(tmp_path)
    with pytest.raises(fxq.DataError, match=r"config\.json has no quantization_config"):
        fxq.load_checkpoint(tmp_path)
