"""What an attention mask is made of, as terms over the indices of a tensor's axes.

A term says what a tensor holds at index (i₀, i₁, …), for every index and every size: a whole number that is affine in
the indices, an element of a tensor that is not looked into, a condition on these, or one of two numbers by a condition.
Indices are at least 0, and nothing else is assumed of them.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from torch import fx

from fxquant.graph import edit


@dataclass(frozen=True)
class Size:
    """The size that a node computes. Like an index it is at least 0, and nothing else is assumed of it."""

    node: fx.Node


@dataclass(frozen=True)
class Affine:
    """Σ factor·(index or size) + constant; `factors` are (axis or size, factor) in order, none of them 0."""

    factors: tuple[tuple[int | Size, int], ...] = ()
    constant: int = 0

    def plus(self, other: "Affine", times: int = 1) -> "Affine":
        """Return self + times·other."""
        total = dict(self.factors)
        for axis, factor in other.factors:
            total[axis] = total.get(axis, 0) + times * factor
        kept = tuple(sorted(((axis, factor) for axis, factor in total.items() if factor), key=str))
        return Affine(kept, self.constant + times * other.constant)

    def at(self, place: "Place") -> "Affine":
        """Return the number where the index of each axis is that of `place`."""
        result = Affine((), self.constant)
        for axis, factor in self.factors:
            result = result.plus(size(axis) if isinstance(axis, Size) else place(axis), factor)
        return result


@dataclass(frozen=True)
class Element:
    """The element of `node`'s tensor at `places`, one for each of its axes.

    As a condition it is that the element is not 0, or, with `zero`, that it is.
    """

    node: fx.Node
    places: tuple[Affine, ...]
    zero: bool = False


@dataclass(frozen=True)
class NotNegative:
    """The condition that an affine number is at least 0."""

    value: Affine


@dataclass(frozen=True)
class All:
    """The condition that all parts hold; with none, what always holds."""

    parts: frozenset[Element | NotNegative] = frozenset()


@dataclass(frozen=True)
class Not:
    """The condition that another does not hold."""

    condition: All


@dataclass(frozen=True)
class Choice:
    """The number `yes` where the condition holds, `no` elsewhere."""

    condition: All
    yes: float
    no: float


Condition = All | Not
Term = Affine | Element | All | Not | Choice
Place = Callable[[int], Affine]
ALWAYS = All()
NEVER = Not(ALWAYS)


def index(axis: int) -> Affine:
    """Return the index of an axis."""
    return Affine(((axis, 1),))


def size(of: Size) -> Affine:
    """Return the number that is a size."""
    return Affine(((of, 1),))


def number(value: float) -> Choice:
    """Return a term for one number."""
    return Choice(ALWAYS, value, value)


def not_negative(value: Affine) -> Condition:
    """Return whether `value` ≥ 0, decided where the signs alone decide it."""
    signs = {factor > 0 for _, factor in value.factors}
    if value.constant >= 0 and signs <= {True}:
        return ALWAYS
    if value.constant < 0 and signs <= {False}:
        return NEVER
    return All(frozenset({NotNegative(value)}))


def both(conditions: Iterable[Condition]) -> Condition | None:
    """Return the condition that all hold; None where that is no term."""
    given = list(conditions)
    if NEVER in given:
        return NEVER
    parts: frozenset[Element | NotNegative] = frozenset()
    for each in given:
        if isinstance(each, Not):
            return None
        parts |= each.parts
    return All(parts)


def negated(condition: Condition) -> Condition:
    """Return the condition that holds where the other does not."""
    if isinstance(condition, Not):
        return condition.condition
    match tuple(condition.parts):
        case (NotNegative(value),):
            return not_negative(Affine((), -1).plus(value, -1))
        case (Element() as element,):
            return All(frozenset({replace(element, zero=not element.zero)}))
    return Not(condition)


def chosen(condition: Condition, yes: float, no: float) -> Choice:
    """Return the choice between two numbers."""
    if isinstance(condition, Not):
        return chosen(condition.condition, no, yes)
    return Choice(condition, yes, yes if condition == ALWAYS else no)


def as_condition(term: Term) -> Condition | None:
    """Return where a term is not 0; None where that is no term."""
    match term:
        case All() | Not():
            return term
        case Affine((), constant):
            return ALWAYS if constant else NEVER
        case Element():
            return All(frozenset({term}))
        case Choice(condition, yes, no):
            if bool(yes) == bool(no):
                return ALWAYS if yes else NEVER
            return condition if yes else negated(condition)
    return None


def as_choice(term: Term) -> Choice | None:
    """Return a term as a choice of numbers; None where that is no term.

    An element counts as one of 0 and 1, so integers that a model calculates with here have to be a mask's. Elements of
    floats are no terms.
    """
    match term:
        case Choice():
            return term
        case Affine((), constant):
            return number(constant)
        case Element(node):
            known = edit.info(node)
            if known is None or known.dtype.is_floating_point:
                return None
    condition = as_condition(term)
    return None if condition is None else chosen(condition, 1.0, 0.0)


def moved(term: Term, place: Place) -> Term | None:
    """Return the term where the index of each axis is that of `place`; None where that is no term."""
    match term:
        case Affine():
            return term.at(place)
        case Element():
            return _element_at(term, place)
        case All(parts):
            return both(_part_at(part, place) for part in parts)
        case Not(condition):
            inner = moved(condition, place)
            return negated(inner) if isinstance(inner, All | Not) else None
        case Choice(condition, yes, no):
            inner = moved(condition, place)
            return chosen(inner, yes, no) if isinstance(inner, All | Not) else None


def _part_at(part: Element | NotNegative, place: Place) -> Condition:
    if isinstance(part, NotNegative):
        return not_negative(part.value.at(place))
    return All(frozenset({_element_at(part, place)}))


def _element_at(element: Element, place: Place) -> Element:
    return replace(element, places=tuple(each.at(place) for each in element.places))
