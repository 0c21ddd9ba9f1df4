"""Decoding on a GPU: a Llama-shaped 8B, token by token, in bfloat16 under torch.compile and with 4-bit weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from gpu_machine import Machine
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional

import fxquant as fxq
from fxquant.generation import cache
from fxquant.graph.signature import signature_of

PROMPT, WARM, TOKENS, LENGTH = 128, 8, 64, 256  # the cache has room for a prompt and what follows
LLAMA_8B = {
    "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 1024,
}  # fmt: skip
TINY = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
BF16, INT4 = "bfloat16, compile", "fxquant weight-only-int4"


class Compiled:
    """Steps of a model under torch.compile, with CUDA graphs and a cache of a fixed length, as it is fastest."""

    def __init__(self, model: nn.Module, length: int) -> None:
        self.model, self.length = model, length
        self.fast: Any = torch.compile(model, mode="reduce-overhead", fullgraph=True, dynamic=False)
        self.past: Any = None
        self.read = 0

    def start(self, ids: Tensor) -> Tensor:
        """Forget all, and read the prompt; the cache stays where the recorded graph reads it."""
        if self.past is None:
            self.past = transformers.StaticCache(config=self.model.config, max_cache_len=self.length)
        else:
            self.past.reset()
        self.read = 0
        return self._logits(self.model, ids)

    def step(self, ids: Tensor) -> Tensor:
        """Read one more token of each sequence."""
        torch.compiler.cudagraph_mark_step_begin()
        return self._logits(self.fast, ids)

    def _logits(self, call: Any, ids: Tensor) -> Tensor:
        places = torch.arange(self.read, self.read + ids.shape[1], device=ids.device).expand(ids.shape)
        self.read += ids.shape[1]
        given = {"position_ids": places, "past_key_values": self.past, "use_cache": True, "logits_to_keep": 1}
        logits: Tensor = call(input_ids=ids, **given).logits
        return logits[:, -1]


class FixedCache(nn.Module):
    """The step of a program on caches of a fixed length, so that each token's call has one shape and can be recorded.

    A step takes a cache of any length and puts the new token behind it. Here all places are given, those that have no
    token yet are masked, and the new token's keys and values are brought to the first of these.
    """

    def __init__(self, step: GraphModule, length: int) -> None:
        super().__init__()
        self.graph, self.length = step, length
        self.names = [leaf.name for leaf in signature_of(step).leaves if leaf.name.startswith(cache.KINDS)]

    def fill(self, found: Mapping[str, Tensor]) -> None:
        """Keep the cache that a prompt left."""
        for name in self.names:
            kept = functional.pad(found[name], (0, 0, 0, self.length - found[name].shape[2]))
            if hasattr(self, name):
                self.get_buffer(name).copy_(kept)  # where a recorded graph reads it
            else:
                self.register_buffer(name, kept, persistent=False)

    def forward(self, ids: Tensor, mask: Tensor, place: Tensor) -> Tensor:
        """Return the logits after one more token of each sequence, (batch, 1, vocabulary), and keep it at `place`."""
        past = {name: self.get_buffer(name) for name in self.names}
        given = {"position_ids": place.expand(ids.shape), "logits_to_keep": torch.zeros_like(place)}
        found = self.graph(input_ids=ids, attention_mask=mask, **given, **past)
        for name, kept in past.items():
            kept.index_copy_(2, place, found[name][:, :, -1:])
        logits: Tensor = found["logits"]
        return logits


class Recorded:
    """Steps of a program whose tokens are recorded as one CUDA graph; on a CPU they are called."""

    def __init__(self, machine: Machine, program: Any, length: int) -> None:
        self.step_graph, self.fixed = program.graph("step"), FixedCache(program.graph("step"), length)
        self.machine, self.call = machine, self.fixed  # type: Machine, Any
        self.mask, self.place = torch.empty(0), torch.empty(0)

    def start(self, ids: Tensor) -> Tensor:
        """Forget all, and read the prompt."""
        leaves = [leaf for leaf in signature_of(self.step_graph).leaves if leaf.name in self.fixed.names]
        tokens = ids.shape[1]
        places = torch.arange(tokens, device=ids.device)
        given = {"position_ids": places.expand(ids.shape), "logits_to_keep": places[-1:]}
        past = cache.lengthless(leaves, ids)
        found = self.step_graph(input_ids=ids, attention_mask=torch.ones_like(ids), **given, **past)
        self.fixed.fill(found)
        if not self.machine.dry and self.call is self.fixed:
            self.call = fxq.cuda_graphs(self.fixed, outputs="shared")
        self.mask = ids.new_zeros(len(ids), self.fixed.length + 1)
        self.mask[:, :tokens] = 1
        self.mask[:, -1] = 1  # the new token, wherever it is kept
        self.place = places[-1:] + 1
        logits: Tensor = found["logits"]
        return logits[:, -1]

    def step(self, ids: Tensor) -> Tensor:
        """Read one more token of each sequence."""
        logits: Tensor = self.call(ids, self.mask, self.place)
        self.mask.index_fill_(1, self.place, 1)
        self.place = self.place + 1
        return logits[:, -1]


@dataclass(frozen=True)
class Decoder:
    """Steps of a model, each of which is over when its kernels are."""

    machine: Machine
    steps: Any

    def run(self, ids: Tensor, count: int) -> None:
        """Read the prompt, and then so many tokens, the likeliest each."""
        logits = self.steps.start(ids)
        for _ in range(count):
            logits = self.steps.step(logits.argmax(-1, keepdim=True))
        self.machine.wait()


def llama(machine: Machine, dtype: torch.dtype) -> nn.Module:
    """Return a Llama-shaped model with random weights, made where it is to run."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(machine.device), torch.random.fork_rng():
            torch.manual_seed(0)
            config = transformers.LlamaConfig(**(TINY if machine.dry else LLAMA_8B))
            return transformers.LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


def compiled(machine: Machine) -> Decoder:
    """Return the model in bfloat16 under torch.compile, with a cache of fixed length."""
    return Decoder(machine, Compiled(llama(machine, torch.bfloat16), LENGTH))


def int4(machine: Machine) -> Decoder:
    """Return fxquant's program with weights of 4 bits; their scales are found from ranges, which is soon done."""
    model = llama(machine, torch.float32)
    ids = prompt(machine, model.config.vocab_size)
    recipe = {"base": "weight-only-int4", "spec": {"weight": {"observer": "minmax"}}}
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    program = fxq.quantize(model, inputs, backend="cuda", recipe=recipe)
    return Decoder(machine, Recorded(machine, program, LENGTH))


def prompt(machine: Machine, vocabulary: int, batch: int = 2) -> Tensor:
    """Return random ids (batch, tokens)."""
    tokens = 8 if machine.dry else PROMPT
    ids = torch.randint(3, vocabulary, (batch, tokens), generator=torch.Generator().manual_seed(1))
    return ids.to(machine.device)


DECODERS: dict[str, Callable[[Machine], Decoder]] = {BF16: compiled, INT4: int4}
