"""Checkpoints as other tools write them, from scratch: tiny models with random integers, scales and zero points."""

import copy
import json
from pathlib import Path

import generative
import pytest
import torch
from safetensors.torch import save_file

import fxquant as fxq

IDS = torch.randint(3, 64, (2, 7), generator=torch.Generator().manual_seed(0))
LLAMA = ("LlamaForCausalLM", "LlamaConfig", {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 64, "max_position_embeddings": 64,
})  # fmt: skip


def llama(seed=0):
    return generative.build(*LLAMA, seed=seed)


def linears(model):
    """Return path and module of each linear in the layers of a model; its head is none."""
    return [(path, module) for path, module in model.named_modules()
            if type(module).__name__ in ("Linear", "Conv1D") and "head" not in path]  # fmt: skip


def words_of(values, bits):
    """Return integers (rows, values) as int32 (rows, words), by the definition of the format: one bit after another."""
    rows = []
    for row in values.tolist():
        words = []
        for first in range(0, len(row), 32 // bits):
            word = sum(value << (bits * place) for place, value in enumerate(row[first : first + 32 // bits]))
            words.append(word - 2**32 if word >= 2**31 else word)
        rows.append(words)
    return torch.tensor(rows, dtype=torch.int32)


def gptq_layer(k, n, *, bits=4, group=16, version=1, act=False, sym=False, generator):
    """Return the tensors of a GPTQ linear and the weight (n, k) that they stand for.

    With `act` the columns are in an order that all linears of k inputs share, as those do that read one value.
    """
    size = group if group > 0 else k
    count = -(-k // size)
    q = torch.randint(0, 2**bits, (k, n), generator=generator)
    z = torch.randint(0, 2**bits, (count, n), generator=generator)
    z = torch.full_like(z, 2 ** (bits - 1)) if sym else z
    scales = (torch.rand(count, n, generator=generator) * 0.02 + 0.001).half()
    groups = torch.arange(k) // size
    groups = groups[torch.randperm(k, generator=torch.Generator().manual_seed(k))] if act else groups
    stored = (z - 1) % 2**bits if version == 1 else z
    parts = {
        "qweight": words_of(q.T, bits).T.contiguous(),
        "qzeros": words_of(stored, bits),
        "scales": scales,
        "g_idx": groups.int(),
    }
    weight = (q - z[groups]).float() * scales.float()[groups]
    return parts, weight.T.contiguous()


def write_gptq(folder, model, **scheme):
    """Write a GPTQ checkpoint of `model`, whose weights become what it holds; return the tensors of the file.

    `scheme` is that of `gptq_layer`.
    """
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    for path, module in linears(model):
        transposed = type(module).__name__ == "Conv1D"
        n, k = reversed(module.weight.shape) if transposed else module.weight.shape
        parts, weight = gptq_layer(k, n, **scheme, generator=generator)
        module.weight.data = weight.T.contiguous() if transposed else weight
        del tensors[f"{path}.weight"]
        tensors |= {f"{path}.{part}": tensor for part, tensor in parts.items()}
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    bits, group = scheme.get("bits", 4), scheme.get("group", 16)
    config = {
        "quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": scheme.get("act", False),
        "sym": scheme.get("sym", False), "checkpoint_format": "gptq" if scheme.get("version", 1) == 1 else "gptq_v2",
    }  # fmt: skip
    write_folder(folder, model, tensors, config)
    return tensors


def write_folder(folder, model, tensors, config, file="model.safetensors"):
    """Write config.json, with the quantization's, and the tensors."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model.config.architectures = [type(model).__name__]
    (folder / "config.json").write_text(json.dumps({**model.config.to_dict(), "quantization_config": config}))
    save_file(tensors, folder / file, {"format": "pt"})


def bert(seed=0):
    options = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    return generative.build("BertForSequenceClassification", "BertConfig", options, seed=seed)


def write_compressed(folder, model, groups, ignore=()):
    """Let compressed-tensors quantize, compress and write a model; return a function that runs its quantized forward.

    `groups` are schemes with their targets.
    """
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme, apply_quantization_config

    found = {f"group_{number}": QuantizationScheme(**group) for number, group in enumerate(groups)}
    config = QuantizationConfig(config_groups=found, ignore=list(ignore), quantization_status="frozen")
    apply_quantization_config(model, config, show_progress=False)
    for module in model.modules():
        if hasattr(module, "quantization_scheme"):
            _calibrate(module)
    quantized = copy.deepcopy(model)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    folder.mkdir(exist_ok=True)
    config = {**model.config.to_dict(), "architectures": [type(model).__name__]} if hasattr(model, "config") else {}
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
    compressor.update_config(folder)
    return torch.no_grad()(quantized)


def _calibrate(module):
    """Give a module the scales that compressed-tensors finds for its weight, and static ones for its inputs."""
    from compressed_tensors.quantization.utils import calculate_qparams

    weights, inputs = module.quantization_scheme.weights, module.quantization_scheme.input_activations
    shape = {"tensor": (1, -1), "channel": (len(module.weight), 1, -1)}
    rows = module.weight.detach().reshape(
        shape.get(weights.strategy, (len(module.weight), -1, weights.group_size or 1))
    )
    ranges = {"weight": (weights, rows.amin(-1), rows.amax(-1))}
    if inputs is not None and not inputs.dynamic:
        ranges["input"] = (inputs, torch.tensor([-2.0]), torch.tensor([2.5]))
    for name, (arguments, low, high) in ranges.items():
        scale, zero_point = calculate_qparams(low, high, arguments)
        getattr(module, f"{name}_scale").data = scale
        if hasattr(module, f"{name}_zero_point"):
            getattr(module, f"{name}_zero_point").data = zero_point.to(arguments.zp_dtype)


GROUPS = {"granularity": "per-group", "group_size": 16}
CHANNEL = {"granularity": "per-channel", "symmetric": True, "observer": "minmax"}


def quantized(bert, weight, overrides=(), activation="float", backend="x86"):
    """Return the Q/DQ graph of a BERT with weights of a spec."""
    recipe = fxq.Recipe(specs={"activation": activation, "weight": weight}, overrides=overrides)
    return fxq.convert(fxq.prepare(bert, backend, recipe))
