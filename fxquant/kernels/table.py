"""Which kernels each kernel set has, and the emitter that puts each into a graph."""

from collections.abc import Callable

from torch import fx

from fxquant.errors import ConfigError, suggest
from fxquant.kernels.site import Site
from fxquant.registry import Registry

# An emitter inserts a kernel call for a site and returns it, or says why the kernel cannot serve there.
Emitter = Callable[[Site], fx.Node | str]
KERNEL_SETS: dict[str, Registry[Emitter]] = {}


def emitter(kernel_set: str, name: str) -> Callable[[Emitter], Emitter]:
    """Return a decorator that registers the emitter of kernel `name` in `kernel_set`."""
    registry = KERNEL_SETS.setdefault(kernel_set, Registry(f"{kernel_set} kernel"))
    return registry.register(name)


def emitters(kernel_set: str) -> Registry[Emitter]:
    """Return the kernels of `kernel_set`, or raise `ConfigError` naming the nearest known set."""
    if kernel_set not in KERNEL_SETS:
        raise ConfigError(f"unknown kernel set {kernel_set!r}: {suggest(kernel_set, KERNEL_SETS)}")
    return KERNEL_SETS[kernel_set]


def kernel_names(kernel_set: str) -> tuple[str, ...]:
    """Return the names of the kernels in `kernel_set`."""
    return tuple(emitters(kernel_set))
