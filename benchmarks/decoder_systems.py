"""What cpu_decoders.py measures: a system is a decoder made ready in one way, timed over a prompt and tokens after it.

Those of torch, torchao and fxquant are here; OpenVINO, ONNX Runtime and CTranslate2 have files of their own. A system
that cannot be made raises whatever it likes: its row then says why.
"""

import copy
import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from decoder_models import POSITIONS, Shape, Steps, prompt
from torch import Tensor, nn

import fxquant as fxq


@dataclass(frozen=True)
class Times:
    """Seconds for the prompt, and for each token after it."""

    prompt: float
    tokens: list[float]


# Reads ids (batch, tokens), then as many tokens more as are asked for, the likeliest each.
Run = Callable[[Tensor, int], Times]


@dataclass(frozen=True)
class System:
    """A decoder to time.

    `logits` gives those of the last of some ids, (batch, vocabulary), where the system shows them. `bytes` are those of
    the weights that it reads for a token, where that is known.
    """

    run: Run
    logits: Callable[[Tensor], Tensor] | None = None
    bytes: int | None = None


@dataclass(frozen=True)
class Context:
    """What systems are made of; what takes long is kept in `folder`, which is the shape's own."""

    shape: Shape
    model: nn.Module
    folder: Path
    threads: int


Builder = Callable[[Context], System]


def stepwise(steps: Steps, size: int | None = None) -> System:
    """Return a system of what is told tokens step by step; choosing the likeliest is part of a step's time."""

    def run(ids: Tensor, count: int) -> Times:
        times = []
        for place in range(count + 1):
            start = time.perf_counter()
            logits = steps.step(ids) if place else steps.start(ids)
            ids = logits.argmax(-1, keepdim=True)
            times.append(time.perf_counter() - start)
        return Times(times[0], times[1:])

    return System(run, steps.start, size)


class Growing:
    """Steps of a model of transformers, or one called like it, with the cache that grows."""

    def __init__(self, model: Callable[..., Any]) -> None:
        self.model = model
        self.mask, self.past = torch.empty(0), None  # type: Tensor, Any

    def start(self, ids: Tensor) -> Tensor:
        """Forget all, and read the prompt."""
        self.mask = ids.new_ones(len(ids), 0)
        self.past = transformers.DynamicCache()
        return self.step(ids)

    def step(self, ids: Tensor) -> Tensor:
        """Read tokens, with the mask that generation code gives."""
        self.mask = torch.cat((self.mask, torch.ones_like(ids)), 1)
        given = {"attention_mask": self.mask, "past_key_values": self.past, "use_cache": True, "logits_to_keep": 1}
        logits: Tensor = self.model(input_ids=ids, **given).logits
        return logits[:, -1]


class Static:
    """Steps of a compiled model with the cache of fixed length, which compilers need."""

    def __init__(self, model: Any) -> None:
        self.model, self.config = model, model.config
        # All compiled systems run through one function of transformers, each with graphs of its own.
        importlib.import_module("torch._dynamo.config").recompile_limit = 64
        self.fast = torch.compile(model, fullgraph=True, dynamic=False)
        self.past: Any = None
        self.length = 0

    def start(self, ids: Tensor) -> Tensor:
        """Forget all, and read the prompt."""
        self.past = transformers.StaticCache(config=self.config, max_cache_len=POSITIONS // 4)
        self.length = 0
        return self.step(ids)

    def step(self, ids: Tensor) -> Tensor:
        """Read tokens; weights are constants of what is compiled."""
        places = torch.arange(self.length, self.length + ids.shape[1], device=ids.device).expand(ids.shape)
        self.length += ids.shape[1]
        given = {"position_ids": places, "past_key_values": self.past, "use_cache": True, "logits_to_keep": 1}
        with importlib.import_module("torch._inductor.config").patch(freezing=True):
            logits: Tensor = self.fast(input_ids=ids, **given).logits
        return logits[:, -1].float()


def eager(context: Context) -> System:
    """Return the model as transformers runs it."""
    return stepwise(Growing(context.model))


def compiled(context: Context) -> System:
    """Return the model under torch.compile."""
    return stepwise(Static(copy.deepcopy(context.model)))


def torchao(module: str, name: str, **options: object) -> Builder:
    """Return what builds torchao's weight-only quantization, compiled; its kernels want bfloat16 activations."""

    def build(context: Context) -> System:
        quantize = importlib.import_module("torchao.quantization").quantize_
        model = copy.deepcopy(context.model).bfloat16()
        quantize(model, getattr(importlib.import_module(module), name)(**options))
        return stepwise(Static(model))

    return build


def ours(recipe: str) -> Builder:
    """Return what builds fxquant's program for a recipe."""

    def build(context: Context) -> System:
        folder = context.folder / f"fxquant-{recipe}"
        if not folder.exists():
            ids = prompt(context.shape, 2, 8)
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            fxq.save(fxq.quantize(context.model, inputs, recipe=recipe), folder)
        program = fxq.load(folder)
        return stepwise(Growing(program), read_for_a_token(program.graph("step")))

    return build


def read_for_a_token(step: torch.fx.GraphModule) -> int:
    """Return the bytes of a graph's tensors, without the tables of which a few rows are read."""
    tables = set()
    for node in step.graph.nodes:
        if "embedding" in str(node.target):
            tables.add(node.args[0].target)
        elif "row_program" in str(node.target):
            words = [line.split() for line in node.args[2].splitlines()]
            tables |= {node.args[1][int(word[4][1:])].target for word in words if word[2:3] == ["embedding"]}
    state = {**dict(step.named_parameters()), **dict(step.named_buffers())}
    return sum(tensor.nbytes for name, tensor in state.items() if name not in tables)


def from_module(module: str, function: str) -> Builder:
    """Return what calls a builder in a file that is imported only then, as it needs a package that may be missing."""

    def build(context: Context) -> System:
        system: System = getattr(importlib.import_module(module), function)(context)
        return system

    return build


EAGER = "float32 eager"
OURS = {f"fxquant {recipe}": recipe for recipe in ("dynamic", "weight-only", "weight-only-int4")}
SYSTEMS: dict[str, Builder] = {
    EAGER: eager,
    **{name: ours(recipe) for name, recipe in OURS.items()},
    "float32, compile": compiled,
    "torchao int8, compile": torchao("torchao.quantization", "Int8WeightOnlyConfig"),
    "torchao int4, compile": torchao(
        "torchao.prototype.quantization.int4", "PrototypeInt4WeightOnlyConfig", group_size=32
    ),
    "ORT int8": from_module("decoders_onnxruntime", "dynamic"),
    "ORT int4": from_module("decoders_onnxruntime", "four_bits"),
    "OpenVINO int8": from_module("decoders_openvino", "eight_bits"),
    "OpenVINO int4": from_module("decoders_openvino", "four_bits"),
    "CTranslate2 int8": from_module("decoders_ctranslate2", "eight_bits"),
}
