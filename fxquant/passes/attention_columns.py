"""Which columns of a linear's result a query, key or value is, however it is cut out of it.

Models with one linear for all three lay its columns out in their own ways and take them apart in their own ways: views
with further axes, selections, chunks, indices, before or after heads are moved. Which columns come out is found by
letting the same calls cut up the numbers 0, 1, 2, … in the place of the columns, for one token. That all tokens are cut
alike follows from their axes, which every call has to leave whole.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxquant.graph import edit
from fxquant.passes.attention_operands import Operand, same_size

aten = torch.ops.aten


@dataclass(frozen=True)
class Merged:
    """A tensor [B, S, N] whose columns are those of query, key and value, in so many equal groups of heads.

    Each group holds its queries, then its keys, then its values.
    """

    source: fx.Node
    groups: int


def merged(query: Operand, key: Operand, value: Operand) -> Merged | None:
    """Return the one tensor whose columns are those of query, key and value, all of them and in order."""
    found = [_columns(each) for each in (query, key, value)]
    parts = [each for each in found if each is not None]
    if len(parts) < 3 or len({source for source, _ in parts}) > 1:
        return None
    source, heads = parts[0][0], [columns for _, columns in parts]
    every = torch.arange(sum(columns.numel() for columns in heads))
    if edit.info(source).shape[-1] != len(every):  # type: ignore[union-attr]
        return None
    if torch.equal(torch.cat(heads).flatten(), every):
        return Merged(source, 1)
    alike = len({columns.shape for columns in heads}) == 1
    return Merged(source, len(heads[0])) if alike and torch.equal(torch.stack(heads, 1).flatten(), every) else None


def _columns(operand: Operand) -> tuple[fx.Node, Tensor] | None:
    """Return the tensor [B, S, N] that an operand is cut out of, and which columns of it are its [heads, features]."""
    known = edit.info(operand.node)
    cut = _cut(operand.rows or operand.node)
    if cut is None or known is None or cut.tokens != ((0, 1) if operand.rows is not None else (0, 2)):
        return None
    assert isinstance(cut.columns, Tensor), "an operand is one tensor"
    return cut.source, cut.columns.reshape(known.shape[1], known.shape[3])


@dataclass(frozen=True)
class _Cut:
    """What calls make of the columns of a source for one token, and where the axes of batch and positions then lie."""

    source: fx.Node
    columns: Any
    tokens: tuple[int, int]


def _cut(node: Any) -> _Cut | None:
    """Return what a node is cut out of: the last tensor of three axes behind it that is no part of another."""
    known = edit.info(node) if isinstance(node, fx.Node) else None
    rule = RULES.get(node.target) if isinstance(node, fx.Node) else None
    before = None if rule is None else _cut(node.args[0])
    tokens = None if rule is None or before is None else rule(node, before.tokens)
    if before is not None and tokens is not None:
        return _applied(node, before, tokens)
    if known is None or len(known.shape) != 3 or known.dynamic[2]:
        return None
    return _Cut(node, torch.arange(known.shape[2]).view(1, 1, -1), (0, 1))


def _applied(node: fx.Node, before: _Cut, tokens: tuple[int, int]) -> _Cut:
    known, gm = edit.info(node), node.graph.owning_module
    if node.target is aten.reshape.default:
        assert known is not None, "the rule has seen its shape"
        return _Cut(before.source, before.columns.reshape(1, 1, *known.shape[2:]), tokens)
    assert callable(node.target) and gm is not None
    args: Any = fx.map_arg(node.args[1:], lambda each: edit.get_tensor(gm, each).cpu())
    return _Cut(before.source, node.target(before.columns, *args), tokens)


# ── where the axes of the tokens lie after a call, if it leaves them whole ────────────────────────────────────────

Tokens = tuple[int, int]
Rule = Callable[[fx.Node, Tokens], Tokens | None]


def _rank(node: Any) -> int:
    known = edit.info(node)
    return len(known.shape) if known is not None else 0


def _along(position: int) -> Rule:
    """Return the rule of calls that keep all axes and cut the one that argument `position` names."""

    def rule(node: fx.Node, tokens: Tokens) -> Tokens | None:
        axis: Any = node.args[position]
        plain = not any(isinstance(each, fx.Node) for each in node.args[1:])
        return tokens if plain and axis % _rank(node.args[0]) not in tokens else None

    return rule


def _removing(node: fx.Node, tokens: Tokens) -> Tokens | None:
    axis: Any = node.args[1]
    axis %= _rank(node.args[0])
    if axis in tokens or any(isinstance(each, fx.Node) for each in node.args[1:]):
        return None
    first, second = (each - (each > axis) for each in tokens)
    return first, second


def _adding(node: fx.Node, tokens: Tokens) -> Tokens | None:
    axis: Any = node.args[1]
    axis %= _rank(node)
    first, second = (each + (each >= axis) for each in tokens)
    return first, second


def _moved(node: fx.Node, tokens: Tokens) -> Tokens | None:
    """Return where axes go by carrying out the exchange on their numbers."""
    args: Any = node.args
    rank = _rank(args[0])
    axes = torch.empty(tuple(range(rank)), device="meta")  # the size of each axis is its number
    assert callable(node.target)
    order = node.target(axes, *args[1:]).shape
    return order.index(tokens[0]), order.index(tokens[1])


def _reshaped(node: fx.Node, tokens: Tokens) -> Tokens | None:
    source: Any = node.args[0]
    known = edit.info(node)
    kept = known is not None and len(known.shape) > 2 and not any(known.dynamic[2:])
    return tokens if kept and tokens == (0, 1) and all(same_size(source, node, axis) for axis in tokens) else None


def _indexed(node: fx.Node, tokens: Tokens) -> Tokens | None:
    """Return them for one axis that is indexed by a constant of one axis."""
    indices: Any = node.args[1]
    given = [(axis, each) for axis, each in enumerate(indices) if each is not None]
    if len(given) != 1 or given[0][0] in tokens or not edit.is_constant(given[0][1]) or _rank(given[0][1]) != 1:
        return None
    return tokens


def _item(node: fx.Node, tokens: Tokens) -> Tokens | None:
    source: Any = node.args[0]
    return tokens if source.target in SEVERAL else None


SEVERAL = (aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default, aten.unbind.int)
RULES: dict[Any, Rule] = {
    aten.reshape.default: _reshaped,
    aten.unflatten.int: _reshaped,
    aten.flatten.using_ints: _reshaped,
    aten.transpose.int: _moved,
    aten.permute.default: _moved,
    aten.select.int: _removing,
    aten.unbind.int: _removing,
    aten.unsqueeze.default: _adding,
    aten.slice.Tensor: _along(1),
    aten.chunk.default: _along(2),
    aten.split.Tensor: _along(2),
    aten.split_with_sizes.default: _along(2),
    aten.index.Tensor: _indexed,
    operator.getitem: _item,
}
