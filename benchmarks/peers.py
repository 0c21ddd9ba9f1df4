"""The ways to run MiniLM that minilm.py compares: torch in float32, torch's own int8, torchao's PT2E, and fxquant.

What makes each peer what it claims to be:

- oneDNN float32: `F.linear` on CPU goes to MKL. `mkldnn::_reorder_linear_weight` packs each weight once for oneDNN, and
  `mkldnn::_linear_pointwise` multiplies by it; everything else stays eager. torch.compile with freezing reaches
  the same kernel, for symbolic shapes only (`dynamic=True`; for fixed shapes it takes MKL's packed GEMM), and fuses the
  rest.
- torch.ao: `quantize_dynamic` in the engines that this torch was built with; their activations are per tensor.
- PT2E: torchao's quantizer and observers, then torch.compile. Without freezing it falls back to float, silently.
"""

import copy
import importlib
import io
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import common
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import fxquant as fxq
from fxquant.evaluation.pretrained import Pretrained

FLOAT, INTEGER, WEIGHTS = "float32", "int8", "int8 weights"  # what the products of a peer are meant to be


@dataclass(frozen=True)
class Peer:
    """A model to measure; `call` takes the keyword arguments of a batch, `products` is one of the above."""

    call: Callable[..., Any]
    megabytes: float
    products: str = INTEGER


@dataclass(frozen=True)
class Material:
    """What peers are made of."""

    pretrained: Pretrained
    captured: GraphModule
    calibration: Sequence[common.Batch]

    @property
    def model(self) -> nn.Module:
        return self.pretrained.model


class Positional(nn.Module):
    """The model with tensors in a fixed order in and out, as torch.export's tools like it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return hidden states and pooled output, all that the model computes."""
        found = self.model(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
        return found.last_hidden_state, found.pooler_output


def by_name(function: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., SimpleNamespace]:
    """Return a positional model as one that is called as the original."""

    def call(input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> SimpleNamespace:
        hidden, pooled = function(input_ids, attention_mask, token_type_ids)
        return SimpleNamespace(last_hidden_state=hidden, pooler_output=pooled)

    return call


class PackedLinear(nn.Module):
    """A linear layer with its weight in oneDNN's own layout."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """Return x·wᵀ + b."""
        packed: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return packed


def eager(material: Material) -> Peer:
    """Return the model as transformers runs it."""
    return Peer(material.model, serialized(material.model.state_dict()), FLOAT)


def packed(material: Material) -> Peer:
    """Return the eager model with every linear on oneDNN."""
    model = copy.deepcopy(material.model)
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear):
                setattr(parent, name, PackedLinear(child))
    return Peer(model, serialized(material.model.state_dict()), FLOAT)


def compiled(material: Material) -> Peer:
    """Return the float model under torch.compile with frozen weights."""
    return Peer(freeze(Positional(material.model)), serialized(material.model.state_dict()), FLOAT)


def freeze(model: nn.Module) -> Callable[..., SimpleNamespace]:
    """Return `model` compiled for any shape by Inductor, with its weights as constants; called by name."""
    config = importlib.import_module("torch._inductor.config")
    fast = torch.compile(model, dynamic=True, fullgraph=True)

    def call(*args: Tensor) -> tuple[Tensor, Tensor]:
        with config.patch(freezing=True):  # it matters at the calls that compile
            found: tuple[Tensor, Tensor] = fast(*args)
            return found

    return by_name(call)


def torch_ao(engine: str) -> Callable[[Material], Peer]:
    """Return what builds torch.ao's dynamic quantization for an engine."""

    def build(material: Material) -> Peer:
        before, torch.backends.quantized.engine = torch.backends.quantized.engine, engine
        try:  # weights are packed for the engine, and keep to it
            model = torch.ao.quantization.quantize_dynamic(material.model, {nn.Linear}, dtype=torch.qint8)
        finally:
            torch.backends.quantized.engine = before
        return Peer(model, serialized(model.state_dict()))

    return build


def pt2e(material: Material) -> Peer:
    """Return torchao's static PT2E quantization for x86, compiled with freezing."""
    flow = importlib.import_module("torchao.quantization.pt2e.quantize_pt2e")
    x86 = importlib.import_module("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer")
    longest = material.model.config.max_position_embeddings
    batch, sequence = torch.export.Dim("batch", min=1, max=4096), torch.export.Dim("sequence", min=2, max=longest)
    shapes = ({0: batch, 1: sequence},) * 3
    positional = [(b["input_ids"], b["attention_mask"], b["token_type_ids"]) for b in material.calibration]
    exported = torch.export.export(Positional(material.model), positional[0], dynamic_shapes=shapes, strict=False)
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    observed = flow.prepare_pt2e(exported.module(), quantizer)
    for arguments in positional:
        observed(*arguments)
    converted = flow.convert_pt2e(observed)
    used = {str(node.target) for node in converted.graph.nodes if node.op == "get_attr"}  # it keeps float weights too
    state = {name: tensor for name, tensor in converted.state_dict().items() if name in used}
    return Peer(freeze(converted), serialized(state))


def ours(recipe: str) -> Callable[[Material], Peer]:
    """Return what builds fxquant's graph for a recipe."""

    def build(material: Material) -> Peer:
        lowered = fxq.lower(common.convert(material.captured, recipe, material.calibration))
        with tempfile.TemporaryDirectory() as folder:
            files = fxq.save(lowered, Path(folder) / "artifact").iterdir()
            megabytes = sum(file.stat().st_size for file in files) / 1e6
        return Peer(lowered, megabytes, WEIGHTS if recipe == "weight-only" else INTEGER)

    return build


def serialized(state: Mapping[str, Any]) -> float:
    """Return the megabytes that torch.save writes for a state dict."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.tell() / 1e6


EAGER, PACKED = "float32 eager", "float32 oneDNN packed"
PEERS: dict[str, Callable[[Material], Peer]] = {
    EAGER: eager,
    PACKED: packed,
    "float32 compile, freezing": compiled,
    "torch.ao dynamic, onednn": torch_ao("onednn"),
    "torch.ao dynamic, x86": torch_ao("x86"),
    "PT2E x86 static, compile": pt2e,
    "fxquant dynamic": ours("dynamic"),
    "fxquant static": ours("static"),
    "fxquant weight-only": ours("weight-only"),
}
SLOW = ("float32 compile, freezing", "PT2E x86 static, compile")  # a minute each to compile
