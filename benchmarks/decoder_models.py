"""The decoders that cpu_decoders.py measures: random weights, as how long a token takes does not depend on them."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import transformers
from torch import Tensor, nn

from fxquant.generation import cache

HEAD = 64  # features of a head
POSITIONS = 1024


@dataclass(frozen=True)
class Shape:
    """A model's shape; of Llama's kind two query heads share a key head, as the larger ones' do."""

    kind: str
    hidden: int
    layers: int = 8
    vocabulary: int = 32000

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.hidden}"

    @property
    def key_heads(self) -> int:
        return self.hidden // HEAD // (2 if self.kind == "llama" else 1)


SHAPES = tuple(Shape(kind, hidden) for kind in ("llama", "gpt2") for hidden in (512, 1024))


def small(shape: Shape) -> Shape:
    """Return a shape of the same kind that takes no time."""
    return replace(shape, hidden=128, layers=2, vocabulary=300)


def make(shape: Shape) -> nn.Module:
    """Return a model with random weights."""
    kinds: dict[str, Callable[[Shape], nn.Module]] = {"llama": _llama, "gpt2": _gpt2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kinds[shape.kind](shape).eval()


def _llama(shape: Shape) -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.hidden * 11 // 4,
        num_hidden_layers=shape.layers, num_attention_heads=shape.hidden // HEAD,
        num_key_value_heads=shape.key_heads, max_position_embeddings=POSITIONS,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def _gpt2(shape: Shape) -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=shape.vocabulary, n_embd=shape.hidden, n_layer=shape.layers, n_head=shape.hidden // HEAD,
        n_positions=POSITIONS, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def digest(shape: Shape) -> str:
    """Return what tells a model from others, for what is kept of it."""
    return f"{shape.name}-{hashlib.sha256(repr(shape).encode()).hexdigest()[:8]}"


def prompt(shape: Shape, batch: int, tokens: int) -> Tensor:
    """Return random ids (batch, tokens)."""
    return torch.randint(3, shape.vocabulary, (batch, tokens), generator=torch.Generator().manual_seed(1))


class Steps(Protocol):
    """A model that is told tokens, piece by piece; it keeps its cache itself."""

    def start(self, ids: Tensor) -> Tensor:
        """Forget all, read ids (batch, tokens), and return the logits of the last, (batch, vocabulary)."""

    def step(self, ids: Tensor) -> Tensor:
        """Read one more token of each sequence, (batch, 1), and return the logits after it, (batch, vocabulary)."""


class Flat(nn.Module):
    """A model with its cache as tensors in and out, in a fixed order, as exporters like it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, *past: Tensor) -> Any:
        """Return the logits of the last token and the longer cache."""
        kept = cache.pack(past)
        given = {"attention_mask": attention_mask, "position_ids": position_ids, "past_key_values": kept}
        logits = self.model(input_ids=input_ids, **given, use_cache=True, logits_to_keep=1).logits
        return (logits, *cache.unpack(kept))


NAMES = ("input_ids", "attention_mask", "position_ids")


def cache_names(shape: Shape) -> list[str]:
    """Return the names of the tensors of the cache, in order."""
    return cache.names(shape.layers)


def flat_example(shape: Shape) -> tuple[Tensor, ...]:
    """Return inputs of `Flat` to trace it with: two sequences, three tokens after five."""
    ids = prompt(shape, 2, 3)
    past = [torch.zeros(2, shape.key_heads, 5, HEAD) for _ in cache_names(shape)]
    return ids, torch.ones(2, 8, dtype=torch.long), torch.arange(5, 8).repeat(2, 1), *past


def flat_axes(shape: Shape) -> dict[str, dict[int, str]]:
    """Return the axes of free size of the inputs of `Flat`."""
    own: Sequence[dict[int, str]] = ({0: "batch", 1: "tokens"}, {0: "batch", 1: "all"}, {0: "batch", 1: "tokens"})
    return dict(zip(NAMES, own, strict=True)) | {name: {0: "batch", 2: "past"} for name in cache_names(shape)}
