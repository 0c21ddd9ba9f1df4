"""The tensors below a module, held from call to call as long as they are its own.

Walking the modules of a lowered decoder to its hundred tensors took 80 to 110 µs of each token: the weights that a
token reads leave nothing of Python's own in the caches. Whether each is still where it was is asked in C alone, in 70
to 80.
"""

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import getitem, is_
from typing import Any

from torch import Tensor, nn

from fxquant.graph.attributes import Path

Place = tuple[dict[str, Any], str]  # a module's own dict, and the name in it


@dataclass(frozen=True)
class Held:
    """The tensors at some paths below a module, and where modules and tensors on the way there were found.

    Invariants: `found[i]` was at `places[i]`; `places` are all that the paths go by, so that another module on the way
    or another tensor at its end shows.
    """

    root: weakref.ref[nn.Module]
    tensors: list[Tensor]
    dicts: tuple[dict[str, Any], ...]
    names: tuple[str, ...]
    found: tuple[Any, ...]

    def current(self, root: nn.Module) -> bool:
        """Say whether `hold` would find the same tensors below `root`."""
        if self.root() is not root:
            return False
        try:
            return all(map(is_, map(getitem, self.dicts, self.names), self.found))
        except KeyError:
            return False


def hold(root: nn.Module, paths: Sequence[Path]) -> Held:
    """Return the tensors at `paths` below `root`.

    Raises:
        AttributeError: there is none at a path.
    """
    places: dict[Path, Place] = {}
    tensors = []
    for path in paths:
        *_, (found, _) = walked = list(_walk(root, path))
        tensors.append(found)
        places.update((path[: depth + 1], place) for depth, (_, place) in enumerate(walked))
    dicts, names = zip(*places.values(), strict=True) if places else ((), ())
    return Held(weakref.ref(root), tensors, dicts, names, tuple(map(getitem, dicts, names)))


def _walk(root: nn.Module, path: Path) -> Iterator[tuple[Any, Place]]:
    """Yield what each name of a path leads to, and the place that it was found in."""
    at: Any = root
    for name in path:
        own = vars(at)
        place = next(
            (each for each in (own["_modules"], own["_buffers"], own["_parameters"], own) if name in each), None
        )
        if place is None:
            raise AttributeError(f"there is no {'.'.join(path)!r} in the graph")
        at = place[name]
        yield at, (place, name)
