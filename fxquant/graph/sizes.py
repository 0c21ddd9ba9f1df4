"""What an export says of the sizes of a graph's inputs: their symbols, the ranges of these, and conditions on them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.export import ExportedProgram

from fxquant.graph import guards
from fxquant.graph.calling import Leaf

_ANY = 2**62  # an upper limit of sizes that is none
Range = tuple[int, int | None]


class Sizes(NamedTuple):
    """The inputs with symbols d0, d1, …, the ranges of those that have one, and what these two do not say.

    `unchecked` is the text of conditions that cannot be checked.
    """

    leaves: tuple[Leaf, ...]
    ranges: dict[str, Range]
    conditions: tuple[guards.Tree, ...]
    unchecked: list[str]


def sizes_of(program: ExportedProgram, names: Sequence[str], values: Sequence[Tensor]) -> Sizes:
    """Return what `program` says of the sizes of its inputs, which are `values` by these names.

    Sizes that a condition makes equal have one symbol: a graph of many layers, each with a cache, would else have a
    condition for each of them to look at in every call.
    """
    trees = [(text, guards.parse(text)) for text in getattr(program, "_guards_code", ())]
    same, kept = _Same(), []
    for _, tree in trees:
        if tree is not None and _tells(tree) and not same.take(guards.equal_sizes(tree), values):
            kept.append(tree)
    leaves, ranges = _leaves(names, values, same, program.range_constraints)
    return Sizes(leaves, ranges, tuple(kept), [text for text, tree in trees if tree is None])


def _tells(tree: guards.Tree) -> bool:
    """Say whether a condition is more than shapes, ranges and signs say already."""
    return not (guards.is_plain(tree) or guards.is_assumed(tree) or guards.always_holds(tree))


class _Same:
    """Which of an export's symbols are one, and what it is called."""

    def __init__(self) -> None:
        self._first: dict[str, str] = {}
        self._names: dict[str, str] = {}

    def take(self, pair: guards.Pair | None, values: Sequence[Tensor]) -> bool:
        """Make the symbols of two sizes one; says whether these are two sizes with symbols."""
        sizes = [values[leaf].shape[dimension] for leaf, dimension in pair or ()]
        if not sizes or any(isinstance(size, int) for size in sizes):
            return False
        first, second = (self._root(str(size)) for size in sizes)
        if first != second:
            self._first[second] = first
        return True

    def name(self, size: Any) -> str:
        """Return the symbol of a size: d0, d1, … in the order in which they are asked for."""
        return self._names.setdefault(self._root(str(size)), f"d{len(self._names)}")

    def _root(self, symbol: str) -> str:
        while symbol in self._first:
            symbol = self._first[symbol]
        return symbol


def _leaves(
    names: Sequence[str], values: Sequence[Tensor], same: _Same, limits: Mapping[Any, Any]
) -> tuple[tuple[Leaf, ...], dict[str, Range]]:
    """Return the inputs with symbols, and the ranges of those that have one."""
    ranges: dict[str, Range] = {}
    leaves = []
    for name, value in zip(names, values, strict=True):
        shape = tuple(size if isinstance(size, int) else same.name(size) for size in value.shape)
        leaves.append(Leaf(name, value.dtype, shape))
        for size, symbol in zip(value.shape, shape, strict=True):
            found = None if isinstance(size, int) else _range(limits.get(size.node.expr))
            if found is not None:
                ranges[str(symbol)] = _both(found, ranges.get(str(symbol), (0, None)))
    return tuple(leaves), ranges


def _range(limit: Any) -> Range | None:
    """Return a range that is no matter of course; an export assumes two and more, but serves one and none as well."""
    least, most = (0, None) if limit is None else (_integer(limit.lower), _integer(limit.upper))
    if (least or 0) <= 2 and most is None:
        return None
    return (least if least is not None and least > 2 else 0), most


def _both(one: Range, other: Range) -> Range:
    ends = [most for _, most in (one, other) if most is not None]
    return max(one[0], other[0]), min(ends, default=None)


def _integer(limit: Any) -> int | None:
    return int(limit) if limit.is_Integer and int(limit) < _ANY else None
