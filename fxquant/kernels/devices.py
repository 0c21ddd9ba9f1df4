"""Where the kernels of each set can run on this machine, and where not and why: what certificates are made of."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from fxquant.registry import Registry

CPU = torch.device("cpu")
# q (M, K) uint8 or int8 and weight (N, K) int8 → Σ_k q·weight as int32 (M, N)
Multiply = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Device:
    """One way in which a kernel set computes: an instruction set, a library, a card, an emulated processor.

    `missing` says why this machine has it not. Graphs are lowered and called inside `entered()`, with their tensors on
    `place`. Where products cannot be had from graphs in int32, `multiply` gives them: an engine that always rounds its
    results to 8 bits states it, and an emulated processor, which runs no `graphs` at all.
    """

    name: str
    missing: str | None = None
    place: torch.device = CPU
    entered: Callable[[], AbstractContextManager[object]] = nullcontext
    multiply: Multiply | None = None
    graphs: bool = True


Lister = Callable[[], Iterable[Device]]
DEVICES: Registry[Lister] = Registry("kernel set with devices")


def devices(kernel_set: str) -> Callable[[Lister], Lister]:
    """Return a decorator that registers what lists the devices of `kernel_set`; it runs only when it is asked for."""
    return DEVICES.register(kernel_set)
