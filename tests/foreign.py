"""Checkpoints as other tools write them, from scratch: tiny models with random integers, scales and zero points."""

import json
from pathlib import Path

import generative
import torch
from safetensors.torch import save_file

# Modules of a tiny LLaMA of one layer that checkpoints quantize.
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
