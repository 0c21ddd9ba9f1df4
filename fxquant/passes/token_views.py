"""Rules of ops that move values, or sum them, within tokens: where the tokens of their operand lie.

A rule (`passes.token_rules`) is given a node and the axis of tokens in its result.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import fx

from fxquant.graph import edit


@dataclass(frozen=True)
class Use:
    """An operand with tokens along `axis`, as counted after `missing` leading axes are added to it."""

    value: fx.Node
    axis: int
    missing: int = 0


Uses = tuple[Use, ...]
Rule = Callable[[fx.Node, int], Uses | None]


def shape_of(node: Any) -> tuple[int | None, ...] | None:
    """Return a tensor's sizes; None for one that may vary."""
    known = edit.info(node) if isinstance(node, fx.Node) else None
    if known is None:
        return None
    return tuple(None if dynamic else size for size, dynamic in zip(known.shape, known.dynamic, strict=True))


def rank(node: Any) -> int:
    """Return how many axes a tensor has."""
    return len(shape_of(node) or ())


def _axis(dim: Any, rank: int) -> int:
    assert isinstance(dim, int)
    return dim % rank if rank else 0


def _source(node: fx.Node) -> fx.Node:
    x = node.args[0]
    assert isinstance(x, fx.Node)
    return x


def along(position: int) -> Rule:
    """Return the rule of ops that keep the rank and act along the axis, or axes, that argument `position` names."""

    def rule(node: fx.Node, axis: int) -> Uses | None:
        x, dims = _source(node), node.args[position]
        named = {_axis(dim, rank(x)) for dim in (dims if isinstance(dims, list | tuple) else [dims])}
        return (Use(x, axis),) if 0 not in named and axis not in named and axis < rank(x) else None

    return rule


def reduction(node: fx.Node, axis: int) -> Uses | None:
    """Axes other than those of the sequences and the tokens may be summed over."""
    x, dims, keep = _source(node), *node.args[1:3]
    if dims is None or dims == []:
        return None
    named = sorted(_axis(dim, rank(x)) for dim in (dims if isinstance(dims, list | tuple) else [dims]))
    own = axis if keep else _after_removal(axis, named)
    return (Use(x, own),) if 0 not in named and own not in named and own < rank(x) else None


def _after_removal(axis: int, removed: Iterable[int]) -> int:
    """Return the axis that became `axis` when those in `removed`, which rise, were taken out."""
    for each in removed:
        axis += each <= axis
    return axis


def selection(node: fx.Node, axis: int) -> Uses | None:
    """One place along another axis may be taken."""
    x = _source(node)
    removed = _axis(node.args[1], rank(x))
    own = _after_removal(axis, [removed])
    return (Use(x, own),) if removed and own < rank(x) else None


def unsqueeze(node: fx.Node, axis: int) -> Uses | None:
    """Let an axis be added behind that of the sequences."""
    x = _source(node)
    added = _axis(node.args[1], rank(x) + 1)
    own = axis - (added < axis)
    return (Use(x, own),) if added and axis != added and own else None


def transpose(node: fx.Node, axis: int) -> Uses | None:
    """Leave the axis of the sequences where it is."""
    x = _source(node)
    a, b = (_axis(dim, rank(x)) for dim in node.args[1:3])
    return (Use(x, {a: b, b: a}.get(axis, axis)),) if a and b and axis < rank(x) else None


def permute(node: fx.Node, axis: int) -> Uses | None:
    """Leave the axis of the sequences where it is."""
    dims = node.args[1]
    assert isinstance(dims, list | tuple)
    order = [_axis(dim, len(dims)) for dim in dims]
    return (Use(_source(node), order[axis]),) if order[0] == 0 and axis < len(order) else None


def reshape(node: fx.Node, axis: int) -> Uses | None:
    """Axes behind the tokens may be split and joined: all up to them stay, and the sizes of the others are fixed."""
    x = _source(node)
    before, after = edit.info(x), edit.info(node)
    if before is None or after is None or axis >= min(len(before.shape), len(after.shape)):
        return None
    same = before.shape[: axis + 1] == after.shape[: axis + 1]
    flags = before.dynamic[: axis + 1] == after.dynamic[: axis + 1]
    return (Use(x, axis),) if same and flags and is_fixed(node, axis) else None


def is_fixed(node: fx.Node, axis: int) -> bool:
    """Say whether no size but those of the sequences and the tokens may vary."""
    return all(size is not None for place, size in enumerate(shape_of(node) or ()) if place not in (0, axis))


def unflatten(node: fx.Node, axis: int) -> Uses | None:
    """Let an axis behind the tokens be split."""
    x = _source(node)
    return (Use(x, axis),) if axis < _axis(node.args[1], rank(x)) else None


def concatenation(node: fx.Node, axis: int) -> Uses | None:
    """Tensors may be joined along another axis than those of the sequences and the tokens."""
    parts, dim = node.args[:2]
    assert isinstance(parts, list | tuple)
    nodes = [part for part in parts if isinstance(part, fx.Node)]
    whole = all(axis < rank(part) for part in nodes)
    return tuple(Use(part, axis) for part in nodes) if whole and _axis(dim, rank(node)) not in (0, axis) else None


def stacking(node: fx.Node, axis: int) -> Uses | None:
    """Let tensors be joined along an axis that is new, behind that of the sequences."""
    parts, dim = node.args[:2]
    assert isinstance(parts, list | tuple)
    added = _axis(dim, rank(node))
    own = axis - (added < axis)
    if not added or axis == added or not own:
        return None
    return tuple(Use(part, own) for part in parts if isinstance(part, fx.Node))
