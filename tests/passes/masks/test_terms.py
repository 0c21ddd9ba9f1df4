"""The algebra of conditions: what is decided by signs, joined, negated and moved to other axes."""

import pytest
from torch import fx

from fxquant.passes.masks.terms import (
    ALWAYS,
    NEVER,
    Affine,
    All,
    Choice,
    Element,
    Not,
    NotNegative,
    as_choice,
    as_condition,
    both,
    chosen,
    index,
    moved,
    negated,
    not_negative,
)

NODE = fx.Graph().placeholder("mask")
CAUSAL = not_negative(index(2).plus(index(3), -1))
PADDING = as_condition(Element(NODE, (index(0), index(3))))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Affine((), 0), ALWAYS),
        (Affine(((1, 2),), 3), ALWAYS),
        (Affine((), -1), NEVER),
        (Affine(((1, -1),), -1), NEVER),
        (Affine(((1, -1),), 0), All(frozenset({NotNegative(Affine(((1, -1),), 0))}))),
        (Affine(((1, 1),), -1), All(frozenset({NotNegative(Affine(((1, 1),), -1))}))),
    ],
    ids=str,
)
def test_signs_decide_where_they_can(value, expected):
    assert not_negative(value) == expected


def test_affine_numbers_lose_factors_that_cancel():
    assert index(1).plus(index(1), -1) == Affine()
    assert index(1).plus(index(0), 2).plus(Affine((), 5)) == Affine(((0, 2), (1, 1)), 5)


def test_joining():
    assert both([ALWAYS, PADDING]) == PADDING
    assert both([PADDING, NEVER]) == NEVER
    assert both([PADDING, CAUSAL]).parts == PADDING.parts | CAUSAL.parts
    assert both([Not(All(PADDING.parts | CAUSAL.parts)), PADDING]) is None


def test_negation():
    assert negated(ALWAYS) == NEVER
    assert negated(NEVER) == ALWAYS
    assert negated(CAUSAL) == not_negative(index(3).plus(index(2), -1).plus(Affine((), -1)))
    assert negated(PADDING) == All(frozenset({Element(NODE, (index(0), index(3)), zero=True)}))
    for condition in (CAUSAL, PADDING, both([CAUSAL, PADDING])):
        assert negated(negated(condition)) == condition


def test_choices():
    assert chosen(NEVER, 1.0, 2.0) == chosen(ALWAYS, 2.0, 9.0)
    assert as_condition(Choice(CAUSAL, 0.0, -1.0)) == negated(CAUSAL)
    assert as_condition(Choice(CAUSAL, 3.0, -1.0)) == ALWAYS
    assert as_choice(CAUSAL) == Choice(CAUSAL, 1.0, 0.0)
    assert as_choice(index(0)) is None
    assert as_condition(index(0)) is None


def test_moving_decides_anew():
    at_zero = moved(CAUSAL, lambda axis: Affine() if axis == 3 else index(axis))
    assert at_zero == ALWAYS
    swapped = moved(PADDING, lambda axis: index(3 - axis))
    assert swapped == All(frozenset({Element(NODE, (index(3), index(0)))}))
    assert moved(Choice(CAUSAL, 0.0, -9.0), lambda axis: index(0)) == chosen(ALWAYS, 0.0, 0.0)
