"""What comparisons and logical ops say of terms."""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from fxquant.graph import edit
from fxquant.passes.masks.reader import Meaning, Reader, constant
from fxquant.passes.masks.terms import (
    ALWAYS,
    Affine,
    All,
    Choice,
    Condition,
    Element,
    Not,
    Term,
    as_choice,
    as_condition,
    both,
    chosen,
    negated,
    not_negative,
)

aten = torch.ops.aten
Comparison = Callable[[Any, Any], bool]


def conjunction(reader: Reader, node: fx.Node) -> Term | None:
    """Return where both operands of a logical and, or of a product of truth values, hold."""
    conditions = _operands(reader, node, 2)
    return None if conditions is None else both(conditions)


def _disjunction(reader: Reader, node: fx.Node) -> Term | None:
    conditions = _operands(reader, node, 2)
    neither = None if conditions is None else both(map(negated, conditions))
    return None if neither is None else negated(neither)


def _negation(reader: Reader, node: fx.Node) -> Term | None:
    conditions = _operands(reader, node, 1)
    return None if conditions is None else negated(conditions[0])


def _operands(reader: Reader, node: fx.Node, count: int) -> list[Condition] | None:
    """Return the first operands of an op on truth values as conditions; on integers it works bit by bit."""
    known = edit.info(node)
    terms = [reader.aligned(each, node) for each in node.args[:count]]
    found = [None if term is None else as_condition(term) for term in terms]
    if known is None or known.dtype is not torch.bool:
        return None
    conditions = [each for each in found if each is not None]
    return conditions if len(conditions) == count else None


def _compared(compare: Comparison) -> Meaning:
    def meaning(reader: Reader, node: fx.Node) -> Term | None:
        a, b = (reader.aligned(each, node) for each in node.args[:2])
        apart = _magnitude(reader, node)
        if apart is not None and isinstance(b, Affine) and compare in (operator.le, operator.lt):
            ends = [_ordered(compare, Affine().plus(apart, sign).plus(b, -1)) for sign in (1, -1)]
            return both(each for each in ends if isinstance(each, All | Not))
        if isinstance(a, Affine) and isinstance(b, Affine):
            return _ordered(compare, a.plus(b, -1))
        left, right = (None if each is None else _exact(each) for each in (a, b))
        if left is None or right is None or right.condition != ALWAYS:
            return None
        yes, no = compare(left.yes, right.yes), compare(left.no, right.yes)
        return as_condition(chosen(left.condition, float(yes), float(no)))

    return meaning


def _magnitude(reader: Reader, node: fx.Node) -> Affine | None:
    """Return the whole number that a comparison compares the magnitude of."""
    first = node.args[0]
    if not isinstance(first, fx.Node) or first.target is not aten.abs.default:
        return None
    term = reader.aligned(first.args[0], node)
    return term if isinstance(term, Affine) else None


def _exact(term: Term) -> Choice | None:
    """Return a term as a choice of numbers, without taking an element of integers for one of 0 and 1."""
    known = edit.info(term.node) if isinstance(term, Element) else None
    return None if known is not None and known.dtype is not torch.bool else as_choice(term)


def _ordered(compare: Comparison, difference: Affine) -> Term | None:
    """Return how the difference of two whole numbers compares with 0."""
    if not difference.factors:
        return constant(compare(difference.constant, 0))
    reverse, one = Affine().plus(difference, -1), Affine((), 1)
    found = {
        operator.ge: difference,
        operator.gt: difference.plus(one, -1),
        operator.le: reverse,
        operator.lt: reverse.plus(one, -1),
    }.get(compare)
    return None if found is None else not_negative(found)


CONDITIONS: dict[Any, Meaning] = {
    **dict.fromkeys((aten.__and__.Tensor, aten.bitwise_and.Tensor, aten.logical_and.default), conjunction),
    **dict.fromkeys((aten.__or__.Tensor, aten.bitwise_or.Tensor, aten.logical_or.default), _disjunction),
    **dict.fromkeys((aten.bitwise_not.default, aten.logical_not.default), _negation),
    **{
        getattr(getattr(aten, compare.__name__), kind): _compared(compare)
        for compare in (operator.ge, operator.gt, operator.le, operator.lt, operator.eq, operator.ne)
        for kind in ("Tensor", "Scalar")
    },
}
