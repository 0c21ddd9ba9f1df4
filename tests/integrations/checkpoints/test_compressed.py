"""compressed-tensors checkpoints: what its own compressor wrote computes what its own forward does; what is refused."""

import json

import foreign
import pytest
import torch
from foreign import IDS
from safetensors.torch import load_file, save_file
from torch import nn

import fxquant as fxq
from fxquant.integrations.checkpoints.compressed import read_compressed
from fxquant.integrations.checkpoints.folder import open_folder

CHANNEL = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}
NARROW = {**CHANNEL, "num_bits": 4}
AFFINE = {**CHANNEL, "symmetric": False}
WHOLE = {**CHANNEL, "strategy": "tensor"}
GROUP = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 16, "symmetric": True}
FLOAT = {**CHANNEL, "type": "float"}
TOKEN = {**CHANNEL, "strategy": "token", "dynamic": True}

# A scheme of weights, the format that the compressor chooses, and the dtype that it becomes here.
WEIGHTS = {
    "int8": ({"weights": CHANNEL, "input_activations": TOKEN}, "int-quantized", "int8"),
    "int8 affine": ({"weights": AFFINE, "input_activations": TOKEN}, "int-quantized", "int8"),
    "int8 tensor": ({"weights": WHOLE, "input_activations": TOKEN}, "int-quantized", "int8"),
    "int8 alone": ({"weights": CHANNEL}, "pack-quantized", "int8"),
    "int8 alone, affine": ({"weights": AFFINE}, "pack-quantized", "int8"),
    "int8 groups": ({"weights": {**GROUP, "num_bits": 8}}, "pack-quantized", "int8"),
    "int8 naive": ({"weights": CHANNEL, "format": "naive-quantized"}, "naive-quantized", "int8"),
    "int4": ({"weights": NARROW}, "pack-quantized", "int4"),
    "int4 affine": ({"weights": {**NARROW, "symmetric": False}}, "pack-quantized", "int4"),
    "int4 tensor, affine": (
        {"weights": {**NARROW, "strategy": "tensor", "symmetric": False}},
        "pack-quantized",
        "int4",
    ),
    "int4 groups": ({"weights": GROUP}, "pack-quantized", "int4"),
    "int4 groups, affine": ({"weights": {**GROUP, "symmetric": False}}, "pack-quantized", "int4"),
    "int4 under int8": ({"weights": NARROW, "input_activations": TOKEN}, "int-quantized", "int8"),
    "float8": ({"weights": FLOAT, "input_activations": {**TOKEN, "type": "float"}}, "float-quantized", "float8_e4m3fn"),
    "float8 tensor": ({"weights": {**FLOAT, "strategy": "tensor"}}, "naive-quantized", "float8_e4m3fn"),
}


class Linear(nn.Module):
    """A model of one linear, of sizes that fill no whole word."""

    def __init__(self, k=48, n=10):
        super().__init__()
        self.layer = nn.Linear(k, n)


def read(folder, model=None, **changes):
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    return read_compressed(open_folder(folder), {**config, **changes}, Linear() if model is None else model)


@pytest.fixture
def folder(tmp_path):
    """The folder of a linear in groups with zero points, and its tensors."""
    foreign.write_compressed(tmp_path, Linear(), [{"targets": ["Linear"], "weights": {**GROUP, "symmetric": False}}])
    return tmp_path, load_file(tmp_path / "model.safetensors")


@pytest.mark.parametrize("scheme, form, dtype", WEIGHTS.values(), ids=WEIGHTS)
def test_weights_are_those_of_the_decompressor_to_the_bit(tmp_path, scheme, form, dtype):
    model = Linear()
    foreign.write_compressed(tmp_path, model, [{"targets": ["Linear"], **scheme}])
    from compressed_tensors.compressors.base import decompress_module

    decompress_module(model.layer)
    layer = read(tmp_path)["layer"]
    assert torch.equal(layer.values(), model.layer.weight)
    assert layer.weight.dtype == dtype
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"]["format"] == form


def test_order_of_columns(folder):
    path, tensors = folder
    before = read(path)["layer"].values()
    order = torch.randperm(48, generator=torch.Generator().manual_seed(3))
    groups = (torch.arange(48) // 16)[order]
    zeros, scales = read(path)["layer"].qparams.zero_point, tensors["layer.weight_scale"]
    packed = (before / scales.repeat_interleave(16, 1)).round() + zeros.repeat_interleave(16, 1)
    tensors["layer.weight_packed"] = foreign.words_of((packed.int() + 8), 4)
    save_file({**tensors, "layer.weight_g_idx": groups.int()}, path / "model.safetensors")
    expected = (packed - zeros[:, groups]) * scales[:, groups]
    assert torch.equal(read(path)["layer"].values(), expected)
    save_file({**tensors, "layer.weight_g_idx": torch.full((48,), -1)}, path / "model.safetensors")
    assert read(path)["layer"].order is None


MIXED = {
    "query": ({"weights": CHANNEL, "input_activations": TOKEN}, "packed_linear_dynamic_int8"),
    "attention.output.dense": (
        {"weights": CHANNEL, "input_activations": {**WHOLE, "symmetric": False}}, "packed_linear_int8",
    ),
    "intermediate.dense": ({"weights": {**GROUP, "symmetric": False}}, "packed_linear_weight_only"),
    "key": ({"weights": NARROW, "input_activations": {**TOKEN, "symmetric": False}}, "packed_linear_dynamic_int8"),
    "classifier": ({"weights": FLOAT, "input_activations": {**WHOLE, "type": "float"}}, None),
}  # fmt: skip


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A BERT of several schemes, what its own forward gives, and the Q/DQ graph that its folder becomes."""
    folder, model = tmp_path_factory.mktemp("mixed"), foreign.bert()
    groups = [{"targets": [f"re:.*{part}$"], **scheme} for part, (scheme, _) in MIXED.items()]
    others = [{"targets": ["Linear"], "weights": CHANNEL}, {"targets": ["Embedding"], "weights": CHANNEL}]
    ignore = ["bert.pooler.dense", "re:.*position_embeddings", "LayerNorm"]
    quantized = foreign.write_compressed(folder, model, groups + others, ignore)
    return folder, quantized, fxq.load_checkpoint(folder, {"input_ids": IDS}, lower=False)


def test_graph_computes_what_the_quantized_forward_does_to_the_bit(mixed):
    _, quantized, graph = mixed
    assert torch.equal(graph(input_ids=IDS).logits, quantized(input_ids=IDS).logits)


def test_each_scheme_runs_in_its_kernel(mixed, tmp_path):
    _, quantized, graph = mixed
    lowered = fxq.lower(graph)
    kinds = ("linear", "embedding", "aten.linear")
    rows = {row.module_path: row for row in fxq.ledger(lowered).rows if row.op.startswith(kinds)}
    for part, (_, kernel) in MIXED.items():
        (row,) = [row for path, row in rows.items() if path.endswith(part) and "pooler" not in path]
        assert kernel in row.kernel if kernel else not row.kernel, part
    assert "embedding_int8" in rows["bert.embeddings.word_embeddings"].kernel
    expected = quantized(input_ids=IDS).logits
    assert torch.allclose(lowered(input_ids=IDS).logits, expected, atol=0.01 * float(expected.abs().max()))
    fxq.save(lowered, tmp_path / "artifact")
    assert torch.equal(fxq.load(tmp_path / "artifact")(input_ids=IDS).logits, lowered(input_ids=IDS).logits)


TENSORS = {
    "a missing scale": ({"weight_scale": None}, r"the tensor layer\.weight_scale is missing"),
    "a missing zero point": ({"weight_zero_point": None}, r"the tensor layer\.weight_zero_point is missing"),
    "words of other sizes": (
        {"weight_packed": torch.zeros(10, 5).int()}, r"weight_packed has shape \(10, 5\): expected \(10, 6\)",
    ),
    "a shape that is none": ({"weight_shape": torch.tensor([0, 48])}, r"weight_shape says \[0, 48\]: expected two"),
    "another shape": (
        {"weight_shape": torch.tensor([10, 40])}, r"weight_packed has shape \(10, 6\): expected \(10, 5\)",
    ),
    "scales of other groups": ({"weight_scale": torch.ones(10, 4)}, r"has shape \(10, 4\): expected \(10, 3\)"),
    "a group out of range": ({"weight_g_idx": torch.arange(48) // 12}, "g_idx names groups 0 to 3: expected 0 to 2"),
}  # fmt: skip


@pytest.mark.parametrize("changes, message", TENSORS.values(), ids=TENSORS)
def test_tensors_that_do_not_fit_are_refused(folder, changes, message):
    path, tensors = folder
    tensors |= {f"layer.{name}": tensor for name, tensor in changes.items()}
    save_file({name: each for name, each in tensors.items() if each is not None}, path / "model.safetensors")
    with pytest.raises(fxq.DataError, match=message):
        read(path)


def group(**changes):
    return {"config_groups": {"group_0": {"targets": ["Linear"], "weights": GROUP, **changes}}}


CONFIGS = {
    "bits": (group(weights={**CHANNEL, "num_bits": 3}), "group_0: weights: int of num_bits = 3 by strategy 'channel'"),
    "blocks": (group(weights={**FLOAT, "strategy": "block"}), "weights: strategy = 'block' is no known strategy"),
    "float4": (group(weights={**FLOAT, "num_bits": 4}), "weights: float of num_bits = 4 by strategy 'channel' cannot"),
    "group size": (group(weights={**GROUP, "group_size": -1}), "group_size = -1: expected a positive integer"),
    "dynamic weights": (group(weights={**CHANNEL, "dynamic": True}), "expected weights whose scales are in the file"),
    "inputs of 4 bits": (
        group(input_activations={**TOKEN, "num_bits": 4}),
        "input_activations: num_bits = 4, strategy",
    ),
    "inputs in groups": (group(input_activations={**TOKEN, "strategy": "group"}), "strategy = 'group', dynamic = True"),
    "static tokens": (group(input_activations={**TOKEN, "dynamic": False}), "strategy = 'token', dynamic = False"),
    "outputs": (group(output_activations=TOKEN), "output_activations cannot be read: expected null"),
    "format": (group(format="marlin-24"), "format = 'marlin-24' is no known format: Known: float-quantized"),
    "preset": ({"config_groups": {"W8A8": ["Linear"]}}, r"config_groups\.W8A8: names a preset"),
    "no groups": ({"config_groups": None}, "config_groups = None: expected a table"),
    "pattern": (group(targets=["re:("]), r"targets: 're:\(' is no regular expression"),
    "no target": (group(targets=["Conv1d"]), r"layer\.weight_scale: quantization_config says of no such module"),
    "ignored": ({"ignore": ["layer"]}, r"layer\.weight_scale: quantization_config says of no such module"),
    "cache": ({"kv_cache_scheme": TOKEN}, "kv_cache_scheme: a quantized cache cannot be read"),
    "rotations": (
        {"transform_config": {"config_groups": {"v": {}}}},
        "transform_config says that the model's activations",
    ),
    "sparse": ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config: format = 'sparse-24-bitmask'"),
}


@pytest.mark.parametrize("changes, message", CONFIGS.values(), ids=CONFIGS)
def test_configurations_that_cannot_be_read_are_refused(folder, changes, message):
    with pytest.raises(fxq.DataError, match=f"quantization_config.*{message}" if "layer" not in message else message):
        read(folder[0], **changes)


def test_integers_beyond_the_bits_are_refused(tmp_path):
    scheme = {"targets": ["Linear"], "weights": NARROW, "input_activations": TOKEN}
    foreign.write_compressed(tmp_path, Linear(), [scheme])
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["layer.weight"][3, 4] = 8
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(fxq.DataError, match=r"layer\.weight has values beyond num_bits = 4"):
        read(tmp_path)


def test_a_target_without_integers_is_refused(folder):
    path, tensors = folder
    save_file({"layer.weight": torch.zeros(10, 48), "layer.bias": tensors["layer.bias"]}, path / "model.safetensors")
    with pytest.raises(fxq.DataError, match=r"the tensor layer\.weight_shape is missing"):
        read(path)
