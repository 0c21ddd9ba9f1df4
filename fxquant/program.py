"""`Program`: one or several graphs of a model, the tensors they share, and the adapter that calls them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxquant.errors import ConfigError, FxQuantError, suggest
from fxquant.generation.generator import WAYS, generator_of, on_device_of
from fxquant.generation.skeleton import skeleton
from fxquant.graph.host import host_of, put_parts
from fxquant.graph.parts import parts_of
from fxquant.graph.rebuild import tensor_key
from fxquant.registry import Registry

# what is called in the place of the model's forward, made of the graphs
Adapter = Callable[[Mapping[str, fx.GraphModule]], Callable[..., Any]]
ADAPTERS: Registry[Adapter] = Registry("adapter")
_PREFIX = "graph_"  # of the graphs' attributes; a module may not have a child called "forward"
# the graphs that each adapter calls
NEEDS: dict[str, tuple[str, ...]] = {"forward": ("forward",), **{name: way.needs for name, way in WAYS.items()}}


@dataclass(frozen=True)
class _Refusal:
    """Stands for the code of a model, and refuses its call: these graphs are modules, and it is not there."""

    count: int

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise ConfigError(
            f"this program holds {self.count} modules of a model that could not be captured whole; its code is no part "
            "of the artifact: give the model with program.attach(model)"
        )


ADAPTERS.add("modules", lambda graphs: _Refusal(len(graphs)))
ADAPTERS.add("forward", lambda graphs: graphs["forward"])
for _name, _way in WAYS.items():
    ADAPTERS.add(_name, _way.forward)


class Program(nn.Module):
    """Named graphs with one tensor table; calling it is the adapter's matter.

    Invariants: a tensor that several graphs (or several names of one graph) read is one object, stored once.

    Args:
        graphs: captured graphs by name; their tensors are shared, not copied.
        adapter: the name of an entry of `ADAPTERS`.
        model: the model's own code around the graphs, for adapters that generate (without tensors) and for "modules".

    Raises:
        ConfigError: an unknown adapter, a graph that it needs and does not find, no plain name for a graph, a
            model without a module that a graph stands for, or graphs that generate and do not know how.
    """

    def __init__(
        self, graphs: Mapping[str, fx.GraphModule], adapter: str = "forward", model: nn.Module | None = None
    ) -> None:
        super().__init__()
        self._adapter = ADAPTERS[adapter]
        self.adapter = adapter
        for name in NEEDS.get(adapter, ()):
            if name not in graphs:
                raise ConfigError(f"adapter {adapter!r} needs a graph {name!r}; known: {', '.join(graphs) or '(none)'}")
        if adapter in WAYS:
            WAYS[adapter].check(graphs)
        for name in graphs:
            if not name.isidentifier():
                raise ConfigError(f"graph name {name!r}: expected letters, digits and underscores")
            self.add_module(f"{_PREFIX}{name}", graphs[name])
        self._share()
        # no submodules: their tensors are no part of the program
        self.__dict__["_model"] = model
        self.__dict__["_generator"] = None
        self.__dict__["_call"] = None
        self.__dict__["_steps"] = None
        self.__dict__["_host"] = None if model is None or adapter != "modules" else _host(model, self.graphs)

    def attach(self, model: nn.Module) -> "Program":
        """Return the program with the model whose own code calls its graphs.

        After `load` a program of modules needs it, and one that generates where transformers lacks the model's class.

        Raises:
            ConfigError: the program needs none, or the model lacks a module that a graph stands for.
        """
        if self.adapter in WAYS:
            return Program(self.graphs, self.adapter, skeleton(model))
        if self.adapter != "modules":
            raise ConfigError(
                f"the program's adapter is {self.adapter!r}, which calls the graphs itself: no model needed"
            )
        return Program(self.graphs, self.adapter, model)

    def with_steps(self, make: Callable[[fx.GraphModule], Callable[..., Any]]) -> "Program":
        """Return the program with what `make` returns in the place of its graph `step`, for calls and `generate`.

        Raises:
            FxQuantError: it is no program of a decoder, or `make` raises it.
        """
        if self.adapter != "decoder":
            raise FxQuantError(
                f"the steps of a program with the adapter {self.adapter!r} cannot be recorded: those of a decoder can; "
                "an encoder-decoder's read another source each time, of another length. Call it as it is"
            )
        made = Program(self.graphs, self.adapter, self.__dict__["_model"])
        made.__dict__["_steps"] = make(self.graph("step"))
        return made

    @property
    def graphs(self) -> dict[str, fx.GraphModule]:
        """The graphs by name."""
        return {name.removeprefix(_PREFIX): graph for name, graph in self._modules.items()}  # type: ignore[misc]

    def graph(self, name: str) -> fx.GraphModule:
        """Return the graph called `name`, or raise `ConfigError` naming the known ones."""
        if name not in self.graphs:
            raise ConfigError(f"the program has no graph {name!r}: {suggest(name, self.graphs)}")
        return self.graphs[name]

    def map(self, verb: Callable[[fx.GraphModule], fx.GraphModule]) -> "Program":
        """Return a program of what `verb` makes of each graph, with the same adapter."""
        return Program({name: verb(gm) for name, gm in self.graphs.items()}, self.adapter, self.__dict__["_model"])

    def tensors(self) -> dict[str, Tensor]:
        """Return each tensor once, by the name that `names` gives it."""
        table = self.names()
        return {table[graph][target]: tensor for graph, target, tensor in _tensors(self.graphs.items())}

    def names(self) -> dict[str, dict[str, str]]:
        """Return for each graph the name in `tensors` of each attribute path.

        A tensor is called as the first graph calls it; where two graphs use one path for different tensors, the later
        name begins with the graph's.
        """
        named: dict[Any, str] = {}
        table: dict[str, dict[str, str]] = {name: {} for name in self.graphs}
        for graph, target, tensor in _tensors(self.graphs.items()):
            key = tensor_key(tensor)
            if key not in named:
                named[key] = f"{graph}.{target}" if target in named.values() else target
            table[graph][target] = named[key]
        return table

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the graphs as the adapter does."""
        host = self.__dict__["_host"]
        if host is not None:
            with torch.no_grad():
                return host(*args, **kwargs)
        return self._forward()(*args, **kwargs)

    def _forward(self) -> Callable[..., Any]:
        """Return what stands for the model's forward."""
        if self.__dict__["_call"] is None:
            call: Any = self._adapter(self.graphs)
            if self.__dict__["_steps"] is not None:
                call.step = self.__dict__["_steps"]
            self.__dict__["_call"] = call
        found: Callable[..., Any] = self.__dict__["_call"]
        return found

    @property
    def generates(self) -> bool:
        """Whether the program has `generate`."""
        return self.adapter in WAYS

    @property
    def generator(self) -> Any:
        """The model's own class of transformers, whose forward calls the graphs; it holds no weights.

        Raises:
            ConfigError: the program's graphs do not generate, or the installed transformers lacks the model's class.
        """
        if not self.generates:
            advice = "quantize a transformers model that can generate, called with ids and masks alone"
            raise ConfigError(f"a program of {', '.join(self.graphs)} does not generate: {advice}")
        if self.__dict__["_generator"] is None:
            way, forward = WAYS[self.adapter], self._forward()
            self.__dict__["_generator"] = generator_of(self.__dict__["_model"], self.graphs, way, forward)
        return on_device_of(self.__dict__["_generator"], self.graphs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate by the model's own code: greedy, sampling, beams, streaming; arguments as for the model's generate.

        Raises:
            ConfigError: as for `generator`.
            InputError: the model's code calls the graphs with what they do not take, such as a static cache.
        """
        return self.generator.generate(*args, **kwargs)

    def _share(self) -> None:
        first: dict[Any, Tensor] = {}
        for graph, target, tensor in list(_tensors(self.graphs.items())):
            one = first.setdefault(tensor_key(tensor), tensor)
            if one is not tensor and type(one) is type(tensor):
                holder, _, leaf = target.rpartition(".")
                setattr(self.graphs[graph].get_submodule(holder), leaf, one)


def _host(model: nn.Module, graphs: Mapping[str, fx.GraphModule]) -> nn.Module:
    """Return the model's own code with graphs in the places of the modules that they were captured from."""
    host = host_of(model)
    try:
        put_parts(host, parts_of(graphs))
    except AttributeError as error:
        raise ConfigError(f"the model is not the one that was captured: {error}") from None
    return host


def _tensors(graphs: Iterable[tuple[str, fx.GraphModule]]) -> Iterator[tuple[str, str, Tensor]]:
    """Yield graph, attribute path and tensor, one name of a tensor after another."""
    for name, gm in graphs:
        for target, tensor in (*gm.named_parameters(remove_duplicate=False), *gm.named_buffers(remove_duplicate=False)):
            yield name, target, tensor
