"""`Transformation`: a rewrite of float graphs as a user's tool, which says why it did not apply where it nearly did."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from fxquant.errors import FxQuantError
from fxquant.graph import edit
from fxquant.passes.base import Pipeline
from fxquant.passes.canonical_arguments import NormalizeArguments
from fxquant.passes.canonicalize import Sweep

Rewrite = Callable[[], None]


@dataclass(frozen=True)
class Miss:
    """A place where a transformation nearly applied: the node's name, its module path, and what stood against it."""

    node: str
    path: str
    reason: str

    def __str__(self) -> str:
        return f"%{self.node} at {self.path or 'the top'}: {self.reason}"


class Transformation(ABC):
    """A rewrite of graphs of ATen calls: a frozen dataclass whose fields are its options.

    Called with a graph it returns a new one, which shares the tensors that it leaves alone. `apply` edits a graph whose
    arguments are spelled out in place, so that a transformation is a pass of a `Pipeline` too.
    """

    name: ClassVar[str]
    after: ClassVar[tuple[str, ...]] = ("normalize_arguments",)

    @abstractmethod
    def sites(self, gm: fx.GraphModule) -> Iterator[Rewrite | Miss]:
        """Yield for each place what rewrites it, or why it stays; a rewrite is made before the next is asked for."""

    def inverse(self) -> "Transformation":
        """Return the transformation that undoes this one.

        Raises:
            FxQuantError: there is none.
        """
        raise FxQuantError(f"{self.name} cannot be undone: keep the graph that it was called with")

    def __call__(self, gm: fx.GraphModule) -> fx.GraphModule:
        """Return the rewritten graph; `gm` is left as it is."""
        return Pipeline((NormalizeArguments(), self, Sweep())).run(edit.clone(gm))

    def apply(self, gm: fx.GraphModule) -> int:
        """Rewrite every place in `gm` and return how many there were."""
        count = 0
        for site in self.sites(gm):
            if not isinstance(site, Miss):
                site()
                count += 1
        return count

    def misses(self, gm: fx.GraphModule) -> tuple[Miss, ...]:
        """Return the places where the transformation nearly applies, with the reason why it does not."""
        copy = Pipeline((NormalizeArguments(),)).run(edit.clone(gm))
        return tuple(site for site in self.sites(copy) if isinstance(site, Miss))


@dataclass(frozen=True)
class Composition(Transformation):
    """Transformations one after the other; the inverse undoes them from the last to the first."""

    parts: tuple[Transformation, ...]
    name: ClassVar[str] = "composition"

    def sites(self, gm: fx.GraphModule) -> Iterator[Rewrite | Miss]:
        """Yield the places of each part, once those before it are rewritten."""
        for part in self.parts:
            yield from part.sites(gm)

    def inverse(self) -> "Composition":
        """Return the composition of the inverses, last first."""
        return Composition(tuple(part.inverse() for part in reversed(self.parts)))


def compose(*parts: Transformation) -> Composition:
    """Return one transformation that makes those given, in order."""
    return Composition(parts)


def miss(node: fx.Node, reason: str) -> Miss:
    """Return a `Miss` at `node`."""
    return Miss(node.name, edit.path_of(node), reason)
