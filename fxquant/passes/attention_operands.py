"""Where an attention's operands come from: rows that a linear wrote, numbers that scale them, repeated heads.

Sizes are equal where the graph's symbols say so; in a graph that was loaded, which has none, where both vary or both do
not, and are equal in the example.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxquant.graph import edit

aten = torch.ops.aten
FLATTENING = (aten.reshape.default, aten.flatten.using_ints)
SPLITTING = (aten.reshape.default, aten.unflatten.int)
SWAPS = ((1, 2), (2, 1), (-3, -2), (-2, -3))


@dataclass(frozen=True)
class Operand:
    """A query, key or value [B, H, S, D], and the [B, S, H·D] or [B, S, H, D] that it is a view of, if there is one."""

    node: fx.Node
    rows: fx.Node | None


def operand(node: Any) -> Operand:
    """Return an operand of attention with its source."""
    assert isinstance(node, fx.Node), "attention reads tensors"
    if not swaps_positions_and_heads(node):
        return Operand(node, None)
    return Operand(node, flat_source(node.args[0]))


def flat_source(apart: Any) -> fx.Node:
    """Return the [B, S, H·D] that a node [B, S, H, D] is a view of, or the node itself."""
    assert isinstance(apart, fx.Node), "attention reads tensors"
    flat = apart.args[0] if apart.target in SPLITTING else None
    return flat if isinstance(flat, fx.Node) and _flat_of(flat, apart) else apart


def unscaled(read: Operand) -> tuple[Operand, float]:
    """Return an operand and the number that it is multiplied with, which attention's scale can take in."""
    node = read.rows
    if node is None or node.target is not aten.mul.Tensor or len(node.users) > 1:
        return read, 1.0
    source, factor = node.args[:2]
    if not isinstance(source, fx.Node) or not isinstance(factor, int | float):
        return read, 1.0
    return Operand(read.node, source), float(factor)


def swaps_positions_and_heads(node: fx.Node) -> bool:
    """Say whether a node is [B, H, S, D] → [B, S, H, D], which is its own reverse."""
    if node.target is aten.transpose.int:
        return node.args[1:] in SWAPS
    order: Any = node.args[1] if node.target is aten.permute.default else ()
    return list(order) == [0, 2, 1, 3]


def flattens(node: fx.Node) -> bool:
    """Say whether a node is [B, S, H, D] → [B, S, H·D]."""
    source = node.args[0] if node.target in FLATTENING else None
    return isinstance(source, fx.Node) and _flat_of(node, source)


def _flat_of(flat: fx.Node, apart: fx.Node) -> bool:
    """Say whether `flat` is [B, S, H·D] and `apart`, of the same numbers in the same order, [B, S, H, D]."""
    one, two = edit.info(flat), edit.info(apart)
    if one is None or two is None:
        return False
    if len(one.shape) != 3 or len(two.shape) != 4 or any((one.dynamic[2], *two.dynamic[2:])):
        return False
    return one.shape[2] == two.shape[2] * two.shape[3] and all(same_size(flat, apart, axis) for axis in (0, 1))


def same_size(a: fx.Node, b: fx.Node, axis: int) -> bool:
    """Say whether two tensors have one size along an axis."""
    left, right = a.meta.get("val"), b.meta.get("val")
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        sizes = left.shape[axis], right.shape[axis]
        return len({size.node.expr if isinstance(size, torch.SymInt) else size for size in sizes}) == 1
    one, two = edit.info(a), edit.info(b)
    if one is None or two is None:
        return False
    return (one.shape[axis], one.dynamic[axis]) == (two.shape[axis], two.dynamic[axis])


def unrepeated(key: Any, value: Any) -> tuple[Any, Any]:
    """Return the heads that key and value repeat for groups of queries, where both repeat as many as often."""
    once = _once(key), _once(value)
    heads = [known.shape[1] for each in once if each is not None and (known := edit.info(each)) is not None]
    return once if len(heads) == 2 and heads[0] == heads[1] else (key, value)


def _once(node: fx.Node) -> fx.Node | None:
    """Return x [B, G, S, D] of expand(x, [B, H, S, D]) or reshape(expand(unsqueeze(x, 2), [B, G, n, S, D]))."""
    source = node.args[0] if node.target is aten.expand.default else _grouped(node)
    before, known = edit.info(source) if isinstance(source, fx.Node) else None, edit.info(node)
    if not isinstance(source, fx.Node) or before is None or known is None or len(before.shape) != 4:
        return None
    heads = before.shape[1]
    fits = known.shape[1] % heads == 0 and not before.dynamic[1] and (heads == 1 or node.target is aten.reshape.default)
    return source if fits and all(same_size(source, node, axis) for axis in (0, 2, 3)) else None


def _grouped(node: fx.Node) -> Any:
    """Return x of reshape(expand(unsqueeze(x, 2), …), …)."""
    for target in (aten.reshape.default, aten.expand.default, aten.unsqueeze.default):
        if not isinstance(node, fx.Node) or node.target is not target:
            return None
        inner, node = node, node.args[0]  # type: ignore[assignment]
    return node if inner.args[1] in (2, -3) else None
