"""Q/DQ graphs of other tools: how each kind is known, and what makes a graph of fxquant of it."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import fx

from fxquant.graph import edit
from fxquant.registry import Registry


@dataclass(frozen=True)
class Entrance:
    """A kind of foreign graph: `knows` recognises it, `enter` makes a converted graph of it.

    `enter` leaves what it is given as it is, and raises `CaptureError` where the graph holds what fxquant does not.
    """

    knows: Callable[[fx.GraphModule], bool]
    enter: Callable[[fx.GraphModule], fx.GraphModule]


ENTRANCES: Registry[Entrance] = Registry("foreign graph")


def entered(gm: object) -> object:
    """Return the converted graph of a foreign Q/DQ graph; what fxquant made, or does not know, as it is."""
    if isinstance(gm, fx.GraphModule) and "stage" not in edit.marks(gm):
        for name in ENTRANCES:
            if ENTRANCES[name].knows(gm):
                return ENTRANCES[name].enter(gm)
    return gm
