"""Division by a number as multiplication, and back."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import fx

from fxquant.graph import edit
from fxquant.passes.canonical_facts import dtype_of, substitute
from fxquant.transforms.base import Miss, Rewrite, Transformation, miss

aten = torch.ops.aten
_FACT = "divisor"  # of a product that was a quotient


@dataclass(frozen=True)
class DivisionToMultiplication(Transformation):
    """Rewrite x / c into x · (1/c) for numbers c.

    Exact where c is a power of two; else within 1.5 units in the last place, as 1/c is rounded first.
    """

    name: ClassVar[str] = "division_to_multiplication"

    def sites(self, gm: fx.GraphModule) -> Iterator[Rewrite | Miss]:
        """Yield every division."""
        for node in list(gm.graph.nodes):
            if node.target in (aten.div.Tensor, aten.div.Tensor_mode):
                reason = _obstacle(node)
                yield miss(node, reason) if reason else partial(_multiply, node)

    def inverse(self) -> "MultiplicationToDivision":
        """Return what restores the divisions."""
        return MultiplicationToDivision()


@dataclass(frozen=True)
class MultiplicationToDivision(Transformation):
    """Restore the divisions that `DivisionToMultiplication` rewrote, with the very divisors."""

    name: ClassVar[str] = "multiplication_to_division"

    def sites(self, gm: fx.GraphModule) -> Iterator[Rewrite | Miss]:
        """Yield every product that was a division."""
        for node in list(gm.graph.nodes):
            if node.target is aten.mul.Tensor and _FACT in edit.marks(node):
                yield partial(_divide, node)

    def inverse(self) -> DivisionToMultiplication:
        """Return what rewrites divisions."""
        return DivisionToMultiplication()


def _obstacle(node: fx.Node) -> str | None:
    x, divisor = node.args[:2]
    if node.target is aten.div.Tensor_mode:
        return f"the quotient is rounded ({node.kwargs['rounding_mode']})"
    if isinstance(divisor, fx.Node):
        return f"the divisor is a tensor, %{divisor.name}"
    kind = dtype_of(x)
    if kind is None or not kind.is_floating_point:
        return "the dividend is not known to be a floating-point tensor"
    assert isinstance(divisor, int | float), "an argument of div is a node or a number"
    if divisor == 0 or not math.isfinite(divisor) or abs(divisor) < torch.finfo(kind).tiny:
        return f"the divisor is {divisor}, whose reciprocal is no normal number"
    return None


def _multiply(node: fx.Node) -> None:
    x, divisor = node.args
    assert isinstance(divisor, int | float), "a site's divisor is a number"
    edit.mark(substitute(node, aten.mul.Tensor, (x, 1 / divisor)), **{_FACT: divisor})


def _divide(node: fx.Node) -> None:
    divisor: Any = edit.marks(node)[_FACT]
    edit.mark(substitute(node, aten.div.Tensor, (node.args[0], divisor)), **{_FACT: None})
