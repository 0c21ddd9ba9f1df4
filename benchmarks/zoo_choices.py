"""How accurate a quantized model is where it chooses as the float model did: which experts a token goes to."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fxquant.graph.signature import signature_of

aten = torch.ops.aten


class Choosing(fx.Interpreter):
    """Runs a graph and keeps its choices in `made`, in order; takes those of another run, if any, instead of its own.

    A choice is an index of the greatest, or the side of a threshold: a result that jumps however little a score moves.
    """

    def __init__(self, gm: fx.GraphModule, given: Sequence[Tensor] = ()) -> None:
        super().__init__(gm)
        self.given, self.made = given, list[Tensor]()

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Return the result of a call; with the choice that was given, where it chooses."""
        found = super().call_function(target, args, kwargs)
        if target not in CHOICES or not args[0].is_floating_point():
            return found
        self.made.append(found if isinstance(found, Tensor) else found[1])
        return CHOICES[target](args, self.given[len(self.made) - 1]) if self.given else found


def _greatest(args: Any, chosen: Tensor) -> tuple[Tensor, Tensor]:
    return args[0].gather(-1, chosen), chosen


# By operator: what it returns for its arguments and a choice. Both `topk` and `max` here go along the last axis.
CHOICES: dict[Any, Callable[[Any, Tensor], Any]] = {
    aten.topk.default: _greatest,
    aten.max.dim: _greatest,
    aten.gt.Scalar: lambda args, chosen: chosen,
}


def as_float(graph: fx.GraphModule, lowered: fx.GraphModule, inputs: dict[str, Tensor]) -> tuple[Any, int, int]:
    """Return what a lowered graph computes with the choices of the float graph, and how many of its own differ."""
    flat = signature_of(graph).flatten((), inputs)
    with torch.no_grad():
        wanted, own = Choosing(graph), Choosing(lowered)
        wanted.run(*flat)
        own.run(*flat)
        outputs = Choosing(lowered, wanted.made).run(*flat)
    pairs = list(zip(wanted.made, own.made, strict=True))
    return outputs, sum(_moved(a, b) for a, b in pairs), sum(a[..., 0].numel() for a, _ in pairs)


def _moved(a: Tensor, b: Tensor) -> int:
    """Return how many tokens were given other choices, in whatever order."""
    return int((a.sort(-1).values != b.sort(-1).values).any(-1).sum())
