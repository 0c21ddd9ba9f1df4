"""What becomes of one of Dynamo's graphs: lowered for the parameters that a call brings, once for each set of them."""

import itertools
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxquant.graph import edit
from fxquant.graph.enter import Entered
from fxquant.portable import kept

Lowering = Callable[[fx.GraphModule], fx.GraphModule]
_NUMBERS = itertools.count()
_LIVE: "weakref.WeakSet[CompiledGraph]" = weakref.WeakSet()


@dataclass(frozen=True)
class _Variant:
    """A lowered graph and the tensors, each at a version, that it was made of."""

    graph: fx.GraphModule
    owners: tuple["weakref.ref[Tensor]", ...]
    versions: tuple[int, ...]

    def serves(self, owners: Sequence[Tensor]) -> bool:
        """Say whether the graph was made of these very tensors as they are now."""
        return all(
            ref() is tensor and version == _version(tensor)
            for ref, version, tensor in zip(self.owners, self.versions, owners, strict=True)
        )


@dataclass(eq=False)
class CompiledGraph:
    """A callable with the arguments of Dynamo's graph.

    Dynamo calls one graph with other parameters where modules share their code, or a parameter was replaced, and with
    changed ones: each such set of parameters is lowered when it is first seen.
    """

    entered: Entered
    lowering: Lowering
    frame: int  # Dynamo's number of the code
    number: int = field(default_factory=lambda: next(_NUMBERS))
    variants: dict[tuple[int, ...], _Variant] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _LIVE.add(self)

    def __call__(self, *args: Any) -> Any:
        """Return the outputs of Dynamo's graph, computed by the lowered one."""
        graph = self.graph(args)
        with torch.no_grad():
            return graph(**self.entered.keywords(args))

    def graph(self, args: Sequence[Any]) -> fx.GraphModule:
        """Return the graph lowered for the parameters among the arguments."""
        owners = [args[at] for at in self.entered.constants]
        key = tuple(map(id, owners))
        found = self.variants.get(key)
        if found is None or not found.serves(owners):
            dead = [each for each, variant in self.variants.items() if None in (ref() for ref in variant.owners)]
            for each in dead:
                del self.variants[each]
            graph = self.lowering(self.entered.holding(args))
            _share(graph, owners)
            found = _Variant(graph, tuple(map(weakref.ref, owners)), tuple(map(_version, owners)))
            self.variants[key] = found
        return found.graph


def graphs_of(model: nn.Module) -> tuple[fx.GraphModule, ...]:
    """Return the lowered graphs, oldest first, that read a parameter or buffer of `model`."""
    return tuple(_graphs({id(tensor) for tensor in (*model.parameters(), *model.buffers())}))


def count_of(frame: int) -> int:
    """Return how many graphs of one code Dynamo holds: it drops what it no longer calls."""
    return sum(each.frame == frame and bool(each.variants) for each in _LIVE)


def _graphs(owners: set[int]) -> Iterator[fx.GraphModule]:
    for compiled in sorted(_LIVE, key=lambda each: each.number):
        for key, variant in compiled.variants.items():
            if owners.intersection(key) and None not in (ref() for ref in variant.owners):
                yield variant.graph


def _share(graph: fx.GraphModule, owners: Sequence[Tensor]) -> None:
    """Let a graph hold the tensors of earlier graphs of these parameters where they are equal: one copy of a weight."""
    known: dict[str, Tensor] = {}
    for other in _graphs(set(map(id, owners))):
        known |= {**dict(other.named_buffers()), **dict(kept(other).named_buffers())}
    for each in (graph, kept(graph)):
        for name, tensor in list(each.named_buffers()):
            same = known.get(name)
            if same is not None and _equal(same, tensor):
                edit.set_tensor(each, name, same)


def _equal(a: Tensor, b: Tensor) -> bool:
    alike = (a.dtype, a.shape, a.stride(), a.device) == (b.dtype, b.shape, b.stride(), b.device)
    return alike and not a.is_meta and torch.equal(a, b)


def _version(tensor: Tensor) -> int:
    # tensors made under inference_mode count no versions
    return -1 if tensor.is_inference() else tensor._version
