"""`Reader`: from a tensor of a graph to its term, by what the ops it is made with mean."""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from fxquant.graph import edit
from fxquant.passes.masks.terms import (
    ALWAYS,
    NEVER,
    Affine,
    Element,
    Size,
    Term,
    index,
    moved,
    not_negative,
    number,
    size,
)

# What an op's result is, or None where that is no term: the result is then a tensor that is not looked into.
Meaning = Callable[["Reader", fx.Node], Term | None]


@dataclass(frozen=True)
class Reader:
    """Reads tensors of one graph, each once; `meanings` are by op."""

    gm: fx.GraphModule
    meanings: Mapping[Any, Meaning]
    known: dict[fx.Node, Term | None] = field(default_factory=dict)

    def read(self, value: object) -> Term | None:
        """Return the term of a node's tensor, of a number or of a size; None for any other node."""
        if isinstance(value, bool | int | float):
            return constant(value)
        if not isinstance(value, fx.Node):
            return None
        if value not in self.known:
            self.known[value] = self._term(value)
        return self.known[value]

    def aligned(self, value: object, result: fx.Node) -> Term | None:
        """Return the term of an operand over the axes of the result that it broadcasts to."""
        term, shift = self.read(value), rank(result) - rank(value)
        return None if term is None else moved(term, lambda axis: index(axis + shift))

    def _term(self, node: fx.Node) -> Term | None:
        known = edit.info(node)
        if known is None:
            return self._size(node)
        meaning = self.meanings.get(node.target) if node.op == "call_function" else None
        term = meaning(self, node) if meaning else _stored(self.gm, node)
        if term is None:
            term = Element(node, tuple(map(index, range(len(known.shape)))))
        # The only index of an axis of size 1 is 0, also where the tensor repeats along it.
        alone = {axis for axis, size in enumerate(known.shape) if size == 1 and not known.dynamic[axis]}
        return moved(term, lambda axis: Affine() if axis in alone else index(axis))

    def _size(self, node: fx.Node) -> Term | None:
        """Return the term of a size or of a sum of sizes."""
        if node.target is torch.ops.aten.sym_size.int:
            return size(Size(node))
        terms = [self.read(each) for each in node.args] if node.target is operator.add else []
        sizes = [each for each in terms if isinstance(each, Affine)]
        return sizes[0].plus(sizes[1]) if len(sizes) == 2 else None


def _stored(gm: fx.GraphModule, node: fx.Node) -> Term | None:
    """Return the term of a constant that is true everywhere, or on and below the diagonal of its last two axes."""
    tensor = edit.get_tensor(gm, node) if edit.is_constant(node) else None
    if tensor is None or tensor.dtype is not torch.bool or tensor.ndim < 2:
        return None
    if bool(tensor.all()):
        return ALWAYS
    row, column = index(tensor.ndim - 2), index(tensor.ndim - 1)
    return not_negative(row.plus(column, -1)) if torch.equal(tensor, _triangle_like(tensor)) else None


def _triangle_like(tensor: Tensor) -> Tensor:
    return torch.ones_like(tensor).tril()


def rank(value: object) -> int:
    """Return how many axes a node's tensor has; 0 for a number."""
    known = edit.info(value) if isinstance(value, fx.Node) else None
    return len(known.shape) if known else 0


def constant(value: float) -> Term:
    """Return the term of a number or a truth value."""
    if isinstance(value, bool):
        return ALWAYS if value else NEVER
    return Affine((), value) if isinstance(value, int) else number(value)
