"""Where packed tokens leave their region: who reads them, and what they then need in the place of padding.

A reader is served if it asks for places one by one, or if what it reads is zero at padding in the padded graph, too, so
that it may do with it what it likes.
"""

from collections.abc import Callable
from enum import StrEnum
from typing import Any

import torch
from torch import fx

from fxquant.graph import edit
from fxquant.graph.edit import TensorInfo
from fxquant.ops.shape import MOVES_VALUES
from fxquant.passes.token_rules import token_operands

aten = torch.ops.aten
ATTENTION = torch.ops.fxquant.attention.default
_LAST = 2**63 - 1  # how a slice without an end ends


class Exit(StrEnum):
    """How a reader outside a region is served."""

    UNPACK = "unpack"  # it reads the padded batch, with zeros at padding
    SELECT = "select"  # it reads one place of each sequence
    SIZE = "size"  # it asks for the size of the padded batch


def exit_of(user: fx.Node, value: fx.Node, axis: int, mask: fx.Node) -> Exit | None:
    """Return how `user` is served with `value`, whose tokens lie along `axis`; None if padding matters to it.

    A value that is its own reader is one whose tokens do not lie along one axis.
    """
    if user is value:
        return None
    if user.op == "output":
        return Exit.UNPACK
    target: Any = user.target
    if target is aten.sym_size.int:
        return Exit.SIZE if user.args[1] in (0, axis) else None
    if target in PICKING and user.args[0] is value and PICKING[target](user, axis):
        return Exit.SELECT if target is aten.select.int and axis == 1 else Exit.UNPACK
    # Another sequence may attend to this one: it leaves padding out.
    attends = target is ATTENTION and user.args[3] is mask and user.args[0] is not value
    return Exit.UNPACK if attends or is_zero_at_padding(value, axis, mask) else None


def _named(user: fx.Node, axis: int) -> bool:
    """Say whether the axis that the second argument names is that of the tokens."""
    x, dim = user.args[:2]
    known = edit.info(x) if isinstance(x, fx.Node) else None
    return known is not None and isinstance(dim, int) and dim % len(known.shape) == axis


def _selects(user: fx.Node, axis: int) -> bool:
    return _named(user, axis) and isinstance(user.args[2], int)


def _slices_one(user: fx.Node, axis: int) -> bool:
    _, _, start, end, step = user.args
    if not (_named(user, axis) and isinstance(start, int) and isinstance(end, int) and step == 1):
        return False
    return end - start == 1 or (start == -1 and end == _LAST)


def _indexes(user: fx.Node, axis: int) -> bool:
    indices = user.args[1]
    assert isinstance(indices, list | tuple)
    known = [edit.info(index) for index in indices if isinstance(index, fx.Node)]
    integers = all(each is not None and each.dtype is not torch.bool for each in known)
    return integers and len(indices) > axis and indices[axis] is not None


# Ops that read places which they are told, and when these are places of tokens.
PICKING: dict[Any, Callable[[fx.Node, int], bool]] = {
    aten.select.int: _selects,
    aten.slice.Tensor: _slices_one,
    aten.index.Tensor: _indexes,
    aten.index_select.default: _named,
    aten.gather.default: _named,
}


def is_zero_at_padding(node: fx.Node, axis: int, mask: fx.Node) -> bool:
    """Say whether the padded `node`, with tokens along `axis`, is zero wherever `mask` (B, S) is false."""
    if node in origins(mask):
        return axis == 1
    uses = {use.value: use.axis for use in token_operands(node, axis) or () if not use.missing}

    def zero(operand: Any) -> bool:
        return operand in uses and is_zero_at_padding(operand, uses[operand], mask)

    if node.target is aten.to.dtype or node.target in MOVES_VALUES:
        return zero(node.args[0])
    if node.target is aten.mul.Tensor:
        return any(map(zero, node.args))
    if node.target is aten.where.ScalarOther:
        return zero(node.args[0]) and _is_zero(node.args[2])
    if node.target is aten.masked_fill.Scalar and _is_zero(node.args[2]):
        return any(_is_true_at_padding(value, own, mask) for value, own in uses.items() if value is node.args[1])
    return False


def _is_zero(number: Any) -> bool:
    return isinstance(number, int | float) and number == 0


def _is_true_at_padding(node: fx.Node, axis: int, mask: fx.Node) -> bool:
    negated = origins(mask)[-1]
    if _negates(negated) and node is negated.args[0]:
        return axis == 1
    uses = token_operands(node, axis) or ()
    if node.target is aten.unsqueeze.default:
        return any(_is_true_at_padding(use.value, use.axis, mask) for use in uses)
    return _negates(node) and any(is_zero_at_padding(use.value, use.axis, mask) for use in uses)


def _negates(node: fx.Node) -> bool:
    if node.target is aten.eq.Scalar:
        return _is_zero(node.args[1])
    return node.target in (aten.logical_not.default, aten.bitwise_not.default)


def origins(mask: fx.Node) -> list[fx.Node]:
    """Return a mask, which is bool, and all that it is made of by cutting off the end and by testing for zero."""
    found = [mask]
    while True:
        node = found[-1]
        cuts = node.target is aten.slice.Tensor and node.args[2] in (0, None) and node.args[4] == 1
        if not (cuts or _tests(node)):
            return found
        assert isinstance(node.args[0], fx.Node)
        found.append(node.args[0])


def _tests(node: fx.Node) -> bool:
    """Say whether a node is zero just where its operand is."""
    if node.target is aten.ne.Scalar:
        return _is_zero(node.args[1])
    known = [edit.info(each) for each in (node, *node.all_input_nodes[:1])]
    return node.target is aten.to.dtype and any(each is not None and each.dtype is torch.bool for each in known)


def untested(mask: fx.Node) -> fx.Node:
    """Return what `mask`, a bool, tests for being zero, cut as that is; inserted at the graph's place of insertion."""
    *made, source = origins(mask)
    known, result = edit.info(mask), edit.info(source)
    assert known is not None
    for node in reversed(made):
        if node.target is aten.slice.Tensor:
            value = TensorInfo(result.dtype, known.shape, known.dynamic) if result else None
            source = edit.call(node.graph, aten.slice.Tensor, (source, *node.args[1:]), like=node, value=value)
    return source
