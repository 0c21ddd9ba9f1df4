"""Operators that are sums of products, read as factors whose axes have letters, as in `einsum`."""

from collections.abc import Callable
from dataclasses import dataclass
from string import ascii_letters
from typing import Any

import torch
from torch import fx

from fxquant.passes.canonical_facts import sizes

aten = torch.ops.aten


@dataclass(frozen=True)
class Term:
    """A factor and the letters of its axes."""

    node: fx.Node
    letters: str

    def axes(self, letters: str) -> list[int]:
        return [self.letters.index(letter) for letter in letters]


@dataclass(frozen=True)
class Sum:
    """The factors, the letters of the result, and what is added to it."""

    terms: tuple[Term, ...]
    result: str
    addend: Any = None


def _of_einsum(node: fx.Node) -> Sum | None:
    equation, operands = str(node.args[0]).replace(" ", ""), node.args[1]
    left, arrow, result = equation.partition("->")
    if not isinstance(operands, (list, tuple)):
        return None
    if not arrow:
        result = "..." * ("..." in left) + "".join(sorted(each for each in ascii_letters if left.count(each) == 1))
    ranks = [len(sizes(each) or ()) for each in operands]
    texts = left.split(",")
    hidden = {rank - len(text) + 3 for rank, text in zip(ranks, texts, strict=True) if "..." in text}
    if len(hidden) > 1:
        return None  # an ellipsis that broadcasts
    dots = "".join(sorted(set(ascii_letters) - set(equation)))[: max(hidden, default=0)]
    terms = (Term(each, text.replace("...", dots)) for each, text in zip(operands, texts, strict=True))
    return Sum(tuple(terms), result.replace("...", dots))


def _of_tensordot(node: fx.Node) -> Sum:
    arguments: Any = node.args
    operands, summed = arguments[:2], arguments[2:4]
    a, b = (len(sizes(each) or ()) for each in operands)
    first, second = list(ascii_letters[:a]), list(ascii_letters[a : a + b])
    for one, other in zip(*summed, strict=True):
        second[other] = first[one]
    result = "".join(letter for letter in first + second if (letter in first) != (letter in second))
    return Sum((Term(operands[0], "".join(first)), Term(operands[1], "".join(second))), result)


def _of_inner(node: fx.Node) -> Sum:
    """Read a sum over the last axis of both factors."""
    operands: Any = node.args
    a, b = (len(sizes(each) or ()) for each in operands)
    first, second = ascii_letters[:a], ascii_letters[a : a + b - 1]
    return Sum((Term(operands[0], first), Term(operands[1], second + first[-1:])), first[:-1] + second)


def _of_bilinear(node: fx.Node) -> Sum:
    one, two, weight, bias = node.args
    rows = "".join(sorted(set(ascii_letters) - set("oij")))[: len(sizes(one) or ()) - 1]
    terms: Any = zip((one, weight, two), (f"{rows}i", "oij", f"{rows}j"), strict=True)
    return Sum(tuple(Term(*each) for each in terms), f"{rows}o", bias)


def _of(letters: str, result: str) -> Callable[[fx.Node], Sum | None]:
    """Return the reader of an operator whose last two arguments are factors with these letters."""

    def read(node: fx.Node) -> Sum | None:
        *addend, first, second = node.args
        plain = all(factor == 1 for factor in node.kwargs.values())  # alpha and beta
        terms: Any = zip((first, second), letters.split(","), strict=True)
        return Sum(tuple(Term(*each) for each in terms), result, *addend) if plain else None

    return read


READERS: dict[Any, Callable[[fx.Node], Sum | None]] = {
    aten.einsum.default: _of_einsum,
    aten.tensordot.default: _of_tensordot,
    aten.inner.default: _of_inner,
    aten.bilinear.default: _of_bilinear,
    aten.mv.default: _of("nk,k", "n"),
    aten.addmv.default: _of("nk,k", "n"),
    aten.addbmm.default: _of("bnk,bkm", "nm"),
}
