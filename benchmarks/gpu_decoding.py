"""Decoding on a GPU: a Llama-shaped 8B, token by token, in bfloat16 under torch.compile and with 4-bit weights."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from gpu_machine import Machine
from torch import Tensor, nn

import fxquant as fxq

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


class Program:
    """Steps of a program, whose tokens are recorded as one CUDA graph; on a CPU they are called."""

    def __init__(self, machine: Machine, program: Any, length: int) -> None:
        self.call = program if machine.dry else fxq.cuda_graphs(program, tokens=length)
        self.past: Any = None

    def start(self, ids: Tensor) -> Tensor:
        """Forget all, and read the prompt."""
        self.past = None
        return self.step(ids)

    def step(self, ids: Tensor) -> Tensor:
        """Read one more token of each sequence."""
        output = self.call(input_ids=ids, past_key_values=self.past, use_cache=True, logits_to_keep=1)
        self.past = output.past_key_values
        logits: Tensor = output.logits
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
    return Decoder(machine, Program(machine, program, LENGTH))


def prompt(machine: Machine, vocabulary: int, batch: int = 2) -> Tensor:
    """Return random ids (batch, tokens)."""
    tokens = 8 if machine.dry else PROMPT
    ids = torch.randint(3, vocabulary, (batch, tokens), generator=torch.Generator().manual_seed(1))
    return ids.to(machine.device)


DECODERS: dict[str, Callable[[Machine], Decoder]] = {BF16: compiled, INT4: int4}
