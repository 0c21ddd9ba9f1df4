"""GPTQModel, through transformers and Optimum, loads what is written, and what it packs itself is read."""

import subprocess
import sys
from importlib.util import find_spec

import foreign
import pytest
import torch
from foreign import GROUPS
from safetensors.torch import load_file, save_file

import fxquant as fxq
from fxquant.integrations.checkpoints.collect import collect
from fxquant.integrations.checkpoints.folder import open_folder
from fxquant.integrations.checkpoints.gptq import read_gptq

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("gptqmodel") is None, reason="needs the package gptqmodel"),
]
# In a process of its own: the package logs, warns, and changes torch's settings as it is imported.
LOAD = """
import sys, torch, transformers
from safetensors.torch import save_file
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float16, device_map="cpu")
layers = {name: module for name, module in model.named_modules() if hasattr(module, "qweight")}
save_file({name: layer.dequantize_weight().T.contiguous() for name, layer in layers.items()}, sys.argv[2])
"""
PACK = """
import sys, torch
from safetensors.torch import save_file
from gptqmodel.nn_modules.qlinear.torch import TorchLinear
for bits in (4, 8):
    for order in ("plain", "act"):
        torch.manual_seed(bits)
        groups = torch.arange(64) // 16
        groups = groups[torch.randperm(64)] if order == "act" else groups
        scale, zero = torch.rand(4, 32).mul(0.01).add(0.001).half().float(), torch.randint(0, 2**bits, (4, 32))
        q = torch.randint(0, 2**bits, (64, 32))
        linear = torch.nn.Linear(64, 32, bias=False)
        linear.weight.data = ((q - zero[groups]) * scale[groups]).T.contiguous()
        packed = TorchLinear(bits, 16, False, order == "act", 64, 32, bias=False)
        packed.pack_block(linear, scale.T.contiguous(), zero.T.contiguous().float(), groups.int())
        parts = {name: getattr(packed, name).contiguous() for name in ("qweight", "qzeros", "scales", "g_idx")}
        tensors = {"weight": linear.weight.data, **{f"layer.{name}": part for name, part in parts.items()}}
        save_file(tensors, f"{sys.argv[1]}/{bits}-{order}.safetensors")
"""


def run(script, *arguments):
    command = [sys.executable, "-W", "ignore", "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("target", ["gptq", "gptq_v2"])
def test_it_loads_what_is_written(tmp_path, target):
    recipe = fxq.Recipe(specs={"activation": "float", "weight": {"dtype": "int4", **GROUPS, "symmetric": False}})
    captured = fxq.capture_generation(foreign.llama(), {"input_ids": foreign.IDS})
    graph = fxq.convert(fxq.prepare(captured, "x86", recipe))
    fxq.export(graph, tmp_path / "out", format="gptq", target=target)
    run(LOAD, tmp_path / "out", tmp_path / "found.safetensors")
    found, stored = load_file(tmp_path / "found.safetensors"), collect(graph.graphs.values())[0]
    assert len(found) == 7
    for path, weight in found.items():
        layer = stored[f"{path}.weight"].layer
        rounded = layer.qparams.scale.half().repeat_interleave(16, 1) * (
            layer.integers - layer.qparams.zero_point.repeat_interleave(16, 1)
        )
        assert torch.equal(weight, rounded)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A folder with linears that the package packed, each beside its weight."""
    folder = tmp_path_factory.mktemp("packed")
    run(PACK, folder)
    return folder


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("order", ["plain", "act"])
def test_its_packing_is_read(packed, tmp_path, bits, order):
    tensors = load_file(packed / f"{bits}-{order}.safetensors")
    weight = tensors.pop("weight")
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    config = {"bits": bits, "group_size": 16, "desc_act": order == "act", "checkpoint_format": "gptq_v2"}
    layer = read_gptq(open_folder(tmp_path), config, torch.nn.Module())["layer"]
    assert torch.equal(layer.values(), weight)
    assert (layer.order is not None) == (order == "act")
