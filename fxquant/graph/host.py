"""A model's own code around captured parts: a copy of its tree of modules, on the same tensors, that can be rearranged.

What forward does to its modules and attributes happens to the copy alone: the model itself is left as it was.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from fxquant.graph.modes import configs
from fxquant.graph.recurrent import unrolled

_OWN = ("_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks")


def host_of(model: nn.Module) -> nn.Module:
    """Return a copy that runs in the model's stead: in eval mode, without a cache, with recurrent layers unrolled."""
    host = copied(model, unrolled)
    for module in host.modules():
        module.training = False
    for config in configs(host, "use_cache"):
        config.use_cache = False
    return host


def copied(model: nn.Module, other: Callable[[nn.Module], nn.Module | None] = lambda _: None) -> nn.Module:
    """Return a copy of the modules of a model and of its configurations; tensors and all else are shared.

    Where `other` returns a module, that stands in the place of a module of the model.
    """
    done: dict[int, nn.Module] = {}
    memory: dict[int, Any] = {}

    def copy_of(module: nn.Module) -> nn.Module:
        if id(module) in done:
            return done[id(module)]
        own = other(module) or _alike(module)
        done[id(module)] = own
        for name in _OWN:
            own.__dict__[name] = own.__dict__[name].copy()
        if "config" in own.__dict__:
            own.__dict__["config"] = copy.deepcopy(own.__dict__["config"], memory)
        for name, child in own._modules.items():
            if child is not None:
                own._modules[name] = copy_of(child)
        return own

    return copy_of(model)


def _alike(module: nn.Module) -> nn.Module:
    # parametrized modules refuse copy.copy, and a GraphModule would make a class
    own: nn.Module = object.__new__(type(module))
    own.__dict__.update(module.__dict__)
    return own


def put_parts(host: nn.Module, parts: Mapping[str, nn.Module]) -> None:
    """Put modules into the places of a host's own, by the paths of those; each is called, and read, in its stead."""
    places = {id(host.get_submodule(path)): part for path, part in parts.items()}
    for module in list(host.modules()):
        for name, child in module._modules.items():
            if id(child) in places:
                assert child is not None, "a part stands for a module"
                module._modules[name] = _Part(child, places[id(child)])


class _Part(nn.Module):
    """Calls a captured graph in the place of a module; other attributes, such as `weight`, are the module's."""

    def __init__(self, own: nn.Module, graph: nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "own", own)  # no submodule: its tensors are not those that run
        self.graph = graph

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the graph returns."""
        return self.graph(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["own"], name)
