"""The encoders that gpu.py measures, and the ways to run one: torch, torch.compile, torchao and fxquant.

Each way is given as it is fastest: torch.compile with `max-autotune`, which records CUDA graphs, and fxquant's lowered
graphs in `cuda_graphs`. torchao's configurations are applied to the bfloat16 model and compiled likewise.
"""

import copy
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from common import Batch
from encoder_models import SMALL, random_batch
from gpu_machine import Machine
from torch import Tensor, nn

import fxquant as fxq

Call = Callable[..., Any]


@dataclass(frozen=True)
class Encoder:
    """An encoder's shape, with random weights, and the batch that it is measured with."""

    name: str
    size: int
    tokens: int
    build: Callable[[dict[str, Any]], nn.Module]
    config: dict[str, Any]

    def model(self, dry: bool) -> nn.Module:
        """Return the model in float32."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return self.build(self.config | (SMALL if dry else {})).eval()

    def batch(self, vocabulary: int, seed: int, dry: bool) -> Batch:
        """Return random tokens without padding."""
        size, tokens = (2, 16) if dry else (self.size, self.tokens)
        return random_batch(vocabulary, [tokens] * size, tokens, seed)


def _bert(config: dict[str, Any]) -> nn.Module:
    return transformers.BertModel(transformers.BertConfig(**config))


def _roberta(config: dict[str, Any]) -> nn.Module:
    return transformers.RobertaModel(transformers.RobertaConfig(**config))


LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
ENCODERS = (
    Encoder("BERT-large 32×128", 32, 128, _bert, LARGE),
    Encoder(
        "RoBERTa-base 32×256", 32, 256, _roberta,
        {"max_position_embeddings": 514, "type_vocab_size": 1, "vocab_size": 50265},
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Context:
    """What ways are made of: the float32 model on the device, and batches there, the first of which is measured."""

    machine: Machine
    model: nn.Module
    batches: tuple[Batch, ...]


Builder = Callable[[Context], Call]


def load(machine: Machine, encoder: Encoder, calibration: int) -> Context:
    """Return an encoder and its batches on the machine's device."""
    model = encoder.model(machine.dry)
    vocabulary = int(model.config.vocab_size)
    batches = [encoder.batch(vocabulary, seed, machine.dry) for seed in range(1 + calibration)]
    placed = tuple({name: value.to(machine.device) for name, value in batch.items()} for batch in batches)
    return Context(machine, model.to(machine.device), placed)


def eager(context: Context) -> Call:
    """Return the model as transformers runs it, in float32 without TF32."""
    return context.model


def compiled(dtype: torch.dtype) -> Builder:
    """Return what compiles the model in a dtype."""

    def build(context: Context) -> Call:
        return _compile(copy.deepcopy(context.model).to(dtype))

    return build


def torchao(name: str, **options: str) -> Builder:
    """Return what applies a configuration of torchao; options name what its module makes without arguments."""

    def build(context: Context) -> Call:
        quantization = importlib.import_module("torchao.quantization")
        model = copy.deepcopy(context.model).bfloat16()
        made = {key: getattr(quantization, value)() for key, value in options.items()}
        quantization.quantize_(model, getattr(quantization, name)(**made))
        return _compile(model)

    return build


def ours(recipe: str) -> Builder:
    """Return what quantizes the model by a recipe, with its calls recorded as CUDA graphs."""

    def build(context: Context) -> Call:
        captured = fxq.capture(context.model, context.batches[0])
        prepared = fxq.prepare(captured, "cuda", recipe)
        if recipe == "static":
            fxq.calibrate(prepared, context.batches[1:], progress=False)
        lowered = fxq.lower(fxq.convert(prepared), "cuda")
        return lowered if context.machine.dry else fxq.cuda_graphs(lowered)

    return build


def _compile(model: nn.Module) -> Call:
    return torch.compile(model, mode="max-autotune", dynamic=False)


def hidden(result: Any) -> Tensor:
    """Return the hidden states of a result, float32."""
    return result.last_hidden_state.float()


EAGER, BF16, FP16 = "float32 eager", "bfloat16, compile", "float16, compile"
OURS = {f"fxquant {recipe}": ours(recipe) for recipe in ("dynamic", "static", "fp8")}
TORCHAO = {
    "torchao int8 dynamic, compile": torchao("Int8DynamicActivationInt8WeightConfig"),
    "torchao fp8 dynamic, compile": torchao("Float8DynamicActivationFloat8WeightConfig", granularity="PerRow"),
}
WAYS: dict[str, Builder] = {
    EAGER: eager,
    BF16: compiled(torch.bfloat16),
    FP16: compiled(torch.float16),
    **TORCHAO,
    **OURS,
}
SLOW = ("compile",)  # in the names of ways that take minutes to make
