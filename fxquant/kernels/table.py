"""Which kernels each kernel set has, what they compute, and the emitter that puts each into a graph."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import fx

from fxquant.errors import ConfigError, FxQuantError, suggest
from fxquant.kernels.site import Site
from fxquant.registry import Registry

# An emitter inserts a kernel call for a site and returns it, or says why the kernel cannot serve there.
Emitter = Callable[[Site], fx.Node | str]


@dataclass(frozen=True)
class Kernel:
    """A kernel that backend rules may name.

    `serves` are the ops that it computes, whole: a fusion that it does not know would lose a part. `needs` are the
    roles that must be quantized for it.
    """

    emit: Emitter
    serves: frozenset[str]
    needs: frozenset[str]


KERNEL_SETS: dict[str, Registry[Kernel]] = {}
# What a set does with the static quantizations that no kernel took over.
QUANTIZERS: dict[str, Emitter] = {}
# A set's own max-pooling of integers over two axes, with the arguments of aten's.
POOLS: dict[str, torch._ops.OpOverload] = {}
# The kinds of device that a set's kernels run on; one that is not named runs anywhere.
PLACES: dict[str, tuple[str, ...]] = {}
# How a set lets a lowered graph make its calls; else Python makes them.
RUNNERS: dict[str, Callable[[fx.GraphModule], None]] = {}
# Whether a set has kernels here for what passes put in the place of several ops; others have those of the C++ core.
FUSES: dict[str, Callable[[], bool]] = {}


def emitter(
    kernel_set: str, name: str, *, serves: tuple[str, ...], needs: tuple[str, ...]
) -> Callable[[Emitter], Emitter]:
    """Return a decorator that registers the emitter of kernel `name` in `kernel_set`."""
    registry = KERNEL_SETS.setdefault(kernel_set, Registry(f"{kernel_set} kernel"))

    def register(emit: Emitter) -> Emitter:
        registry.add(name, Kernel(emit, frozenset(serves), frozenset(needs)))
        return emit

    return register


def kernels(kernel_set: str) -> Registry[Kernel]:
    """Return the kernels of `kernel_set`, or raise `ConfigError` naming the nearest known set."""
    if kernel_set not in KERNEL_SETS:
        raise ConfigError(f"unknown kernel set {kernel_set!r}: {suggest(kernel_set, KERNEL_SETS)}")
    return KERNEL_SETS[kernel_set]


def check_device(kernel_set: str, device: torch.device) -> None:
    """Raise `FxQuantError` where a kernel set has no kernels for a device; says which sets have."""
    known = PLACES.get(kernel_set, (device.type,))
    if device.type not in known:
        others = sorted(name for name in KERNEL_SETS if device.type in PLACES.get(name, (device.type,)))
        raise FxQuantError(
            f"the kernels {kernel_set!r} run on {' and '.join(known)}; the graph's tensors are on {device}. Move the "
            f"graph with .to({known[0]!r}), or lower it for a backend with the kernels {' or '.join(others)}"
        )


def kernel_names(kernel_set: str) -> tuple[str, ...]:
    """Return the names of the kernels in `kernel_set`."""
    return tuple(kernels(kernel_set))


def check_pairing(kernel_set: str, name: str, op: str, roles: frozenset[str]) -> None:
    """Raise `ConfigError` where a kernel does not compute `op`, or needs a role that is not quantized."""
    kernel = kernels(kernel_set)[name]
    if op not in kernel.serves:
        raise ConfigError(f"kernel {name!r} does not compute {op}; it computes {', '.join(sorted(kernel.serves))}")
    missing = sorted(kernel.needs - roles)
    if missing:
        raise ConfigError(f"kernel {name!r} needs {missing[0]} quantized: give the rule a spec for it")
