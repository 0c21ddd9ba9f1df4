"""Which weights of a Q/DQ graph the constants of a lowered graph hold packed, and how they are unpacked.

A kernel's emitter records it where it packs (`Site.constant`); a pass that joins packed constants joins the records.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from torch import Tensor, fx

from fxquant.graph import edit
from fxquant.registry import Registry

# (packed weight, tensor of the plain one's shape and dtype, the record's arguments) → the plain weight, to the bit
Unpack = Callable[..., Tensor]
LAYOUTS: Registry[Unpack] = Registry("layout")
_FACT = "packed"  # of a graph: constant → what it holds, along its first axis, as [weight, entries, layout, arguments]


@dataclass(frozen=True)
class Source:
    """The plain weight behind a packed constant: its name in the Q/DQ graph, and a layout with its arguments."""

    target: str
    layout: str
    arguments: tuple[int, ...] = ()


@dataclass(frozen=True)
class Packed:
    """A packed weight, which may be a part of a constant, and what unpacks it."""

    part: Tensor
    layout: str
    arguments: tuple[int, ...]


def record(gm: fx.GraphModule, constant: fx.Node, source: Source) -> None:
    """Note what a packed constant was made of."""
    entries = len(edit.get_tensor(gm, constant))
    _note(gm, str(constant.target), [[source.target, entries, source.layout, list(source.arguments)]])


def join(gm: fx.GraphModule, parts: Sequence[fx.Node], joined: fx.Node) -> None:
    """Note that a constant is what `parts` are, one after the other along the first axis."""
    known = edit.marks(gm).get(_FACT, {})
    if all(str(part.target) in known for part in parts):
        _note(gm, str(joined.target), [each for part in parts for each in known[str(part.target)]])


def packed_constants(gm: fx.GraphModule) -> Iterator[tuple[str, Packed]]:
    """Yield each weight of the Q/DQ graph that a constant, which the graph still reads, holds packed."""
    read = edit.constants(gm)
    for constant, found in edit.marks(gm).get(_FACT, {}).items():
        if constant in read:
            starts = accumulate((entries for _, entries, _, _ in found), initial=0)
            for start, (target, entries, layout, arguments) in zip(starts, found, strict=False):
                yield target, Packed(read[constant][start : start + entries], layout, tuple(arguments))


def _note(gm: fx.GraphModule, constant: str, found: list[list[Any]]) -> None:
    edit.mark(gm, **{_FACT: {**edit.marks(gm).get(_FACT, {}), constant: found}})
