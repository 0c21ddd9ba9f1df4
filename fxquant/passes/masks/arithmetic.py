"""What sums, products and choices make of terms: ramps of indices, and numbers that are added to scores."""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from fxquant.graph import edit
from fxquant.passes.masks.conditions import conjunction
from fxquant.passes.masks.reader import Meaning, Reader, rank
from fxquant.passes.masks.terms import (
    ALWAYS,
    Affine,
    Choice,
    Condition,
    Term,
    as_choice,
    as_condition,
    both,
    chosen,
    index,
    negated,
    not_negative,
    number,
)

aten = torch.ops.aten
# A number at or below this, added to scores, leaves e⁻¹⁰⁰⁰⁰ of a key's weight, which is 0 in float32: as good as −∞.
HIDDEN = -1e4


def _added(sign: int, first: int = 0) -> Meaning:
    """Return the meaning of operand `first` plus `sign` times the other."""

    def meaning(reader: Reader, node: fx.Node) -> Term | None:
        a, b = (reader.aligned(node.args[place], node) for place in (first, 1 - first))
        alpha = node.kwargs.get("alpha", node.args[2] if len(node.args) > 2 else 1)
        if a is None or b is None or alpha != 1:
            return None
        if isinstance(a, Affine) and isinstance(b, Affine):
            return a.plus(b, sign)
        return _combined(lambda x, y: x + sign * y, a, b) or (_hidden_by_either(a, b) if sign > 0 else None)

    return meaning


def shown(term: Term) -> Condition | None:
    """Return where a number that is added to a score leaves it as it is, if elsewhere it hides the key."""
    choice = as_choice(term)
    if choice is None or max(choice.yes, choice.no) != 0 or HIDDEN < min(choice.yes, choice.no) < 0:
        return None
    return choice.condition if choice.yes == 0 else negated(choice.condition)


def _hidden_by_either(a: Term, b: Term) -> Term | None:
    """Return the sum of two terms that are 0 or hide a key: it hides what one of them hides."""
    x, y = shown(a), shown(b)
    neither = None if x is None or y is None else both((x, y))
    return None if neither is None else chosen(neither, 0.0, HIDDEN)


def _combined(combine: Callable[[float, float], float], a: Term, b: Term) -> Term | None:
    """Return a choice of numbers and a number, in either order, combined."""
    x, y = as_choice(a), as_choice(b)
    if x is None or y is None or ALWAYS not in (x.condition, y.condition):
        return None
    condition = x.condition if y.condition == ALWAYS else y.condition
    return chosen(condition, combine(x.yes, y.yes), combine(x.no, y.no))


def _product(reader: Reader, node: fx.Node) -> Term | None:
    known = edit.info(node)
    if known is not None and known.dtype is torch.bool:
        return conjunction(reader, node)
    a, b = (reader.aligned(each, node) for each in node.args[:2])
    if a is None or b is None:
        return None
    if isinstance(a, Affine) and isinstance(b, Affine):
        x, y = (b, a) if b.factors else (a, b)
        return None if y.factors else Affine().plus(x, y.constant)
    return _combined(operator.mul, a, b)


def _negative(reader: Reader, node: fx.Node) -> Term | None:
    term = reader.read(node.args[0])
    if isinstance(term, Affine):
        return Affine().plus(term, -1)
    return None if term is None else _combined(operator.mul, term, number(-1.0))


def _where(test: int, yes: int, no: int) -> Meaning:
    """Return the meaning of a choice whose operands stand at these arguments."""

    def meaning(reader: Reader, node: fx.Node) -> Term | None:
        asked, x, y = (reader.aligned(node.args[place], node) for place in (test, yes, no))
        if asked is None or x is None or y is None:
            return None
        condition, a, b = as_condition(asked), as_choice(x), as_choice(y)
        return None if condition is None or a is None or b is None else _one_of(condition, a, b)

    return meaning


def _one_of(condition: Condition, yes: Choice, no: Choice) -> Term | None:
    """Return the choice between two choices, of which one is a number that the other may be as well."""
    if no.condition != ALWAYS:
        return _one_of(negated(condition), no, yes) if yes.condition == ALWAYS else None
    if yes.condition == ALWAYS:
        return chosen(condition, yes.yes, no.yes)
    same = yes.yes == no.yes
    inner = both((condition, negated(yes.condition) if same else yes.condition))
    if inner is None or no.yes not in (yes.yes, yes.no):
        return None
    return chosen(inner, yes.no if same else yes.yes, no.yes)


def _triangle(sign: int) -> Meaning:
    """Return the meaning of tril (1) or triu (−1): a number there, 0 elsewhere."""

    def meaning(reader: Reader, node: fx.Node) -> Term | None:
        term, diagonal, known = reader.read(node.args[0]), node.args[1], edit.info(node)
        inner = None if term is None else as_choice(term)
        if inner is None or inner.condition != ALWAYS or known is None or not isinstance(diagonal, int):
            return None
        below = index(rank(node) - 2).plus(index(rank(node) - 1), -1).plus(Affine((), diagonal))
        choice = chosen(not_negative(Affine().plus(below, sign)), inner.yes, 0.0)
        return as_condition(choice) if known.dtype is torch.bool else choice

    return meaning


def _cumulative(reader: Reader, node: fx.Node) -> Term | None:
    """Return the sums of what is 0 everywhere."""
    term = reader.read(node.args[0])
    choice = None if term is None else as_choice(term)
    return Affine() if choice == number(0) else None


def _differences(reader: Reader, node: fx.Node) -> Term | None:
    """Return the differences of neighbours where they are all alike, that to the value put in front included."""
    source, times, along, front, behind = node.args
    term, before = reader.read(source), reader.read(front)
    if not (isinstance(term, Affine) and isinstance(before, Affine)) or (times, behind) != (1, None):
        return None
    assert isinstance(along, int) and isinstance(front, fx.Node)
    axis, known = along % rank(node), edit.info(front)
    step = Affine((), dict(term.factors).get(axis, 0))
    first = term.at(lambda each: Affine() if each == axis else index(each))
    one = known is not None and known.shape[axis] == 1 and not known.dynamic[axis]
    return step if one and first.plus(before, -1) == step else None


ARITHMETIC: dict[Any, Meaning] = {
    aten.add.Tensor: _added(1),
    aten.sub.Tensor: _added(-1),
    aten.rsub.Scalar: _added(-1, first=1),
    aten.rsub.Tensor: _added(-1, first=1),
    aten.mul.Tensor: _product,
    aten.neg.default: _negative,
    **{
        op: _where(0, 1, 2)
        for op in (aten.where.self, aten.where.ScalarSelf, aten.where.ScalarOther, aten.where.Scalar)
    },
    aten.masked_fill.Scalar: _where(1, 2, 0),
    aten.masked_fill.Tensor: _where(1, 2, 0),
    aten.tril.default: _triangle(1),
    aten.triu.default: _triangle(-1),
    aten.cumsum.default: _cumulative,
    aten.diff.default: _differences,
}
