"""A constant vector added to a linear as its bias, and back."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import fx

from fxquant.graph import edit
from fxquant.passes.canonical_facts import call_like, same_type, sizes
from fxquant.transforms.base import Miss, Rewrite, Transformation, miss

aten = torch.ops.aten
_FACT = "fused_bias"  # of a linear whose bias was added after it: the place of the product in the addition


@dataclass(frozen=True)
class FuseBias(Transformation):
    """Rewrite linear(x, weight) + b into linear(x, weight, b), for a constant b of one dimension.

    A kernel may start its sums from b rather than add it last: within u·(|b| + Σ|x·w|) for each of the K additions.
    """

    name: ClassVar[str] = "fuse_bias"

    def sites(self, gm: fx.GraphModule) -> Iterator[Rewrite | Miss]:
        """Yield every sum with a linear and a constant."""
        for node in list(gm.graph.nodes):
            place = _product_of(node)
            if place is not None:
                reason = _obstacle(node, place)
                yield miss(node, reason) if reason else partial(_fuse, node, place)

    def inverse(self) -> "SplitBias":
        """Return what adds the biases again."""
        return SplitBias()


@dataclass(frozen=True)
class SplitBias(Transformation):
    """Add the biases that `FuseBias` fused as before."""

    name: ClassVar[str] = "split_bias"

    def sites(self, gm: fx.GraphModule) -> Iterator[Rewrite | Miss]:
        """Yield every linear whose bias was fused."""
        for node in list(gm.graph.nodes):
            if node.target is aten.linear.default and _FACT in edit.marks(node):
                yield partial(_split, node)

    def inverse(self) -> FuseBias:
        """Return what fuses biases."""
        return FuseBias()


def _product_of(node: fx.Node) -> int | None:
    """Return the place of the linear in a sum of a linear and a constant."""
    if node.target is not aten.add.Tensor:
        return None
    for place in (0, 1):
        product, other = node.args[place], node.args[1 - place]
        if isinstance(product, fx.Node) and product.target is aten.linear.default and edit.is_constant(other):
            return place
    return None


def _obstacle(node: fx.Node, place: int) -> str | None:
    product, bias = node.args[place], node.args[1 - place]
    assert isinstance(product, fx.Node) and isinstance(bias, fx.Node), "a site adds a constant to a linear"
    if product.args[2] is not None:
        return f"%{product.name} has a bias already"
    if len(product.users) > 1:
        reader = next(user for user in product.users if user is not node)
        return f"%{product.name} is also read by %{reader.name}"
    if node.kwargs["alpha"] != 1:
        return f"the addend is multiplied by alpha = {node.kwargs['alpha']}"
    width = (sizes(product) or ())[-1:]
    if sizes(bias) != width or not same_type(node, product):
        return f"the constant {bias.target} has shape {list(sizes(bias) or ())}, expected {list(width)}"
    return None


def _fuse(node: fx.Node, place: int) -> None:
    product, bias = node.args[place], node.args[1 - place]
    assert isinstance(product, fx.Node) and isinstance(bias, fx.Node), "a site adds a constant to a linear"
    if not bias < product:
        product.prepend(bias)
    edit.set_argument(product, 2, bias)
    edit.mark(product, **{_FACT: {"place": place, "path": edit.path_of(node)}})
    edit.replace(node, product)


def _split(node: fx.Node) -> None:
    fact: dict[str, Any] = edit.marks(node)[_FACT]
    x, weight, bias = node.args
    edit.mark(node, **{_FACT: None})
    product = call_like(node, aten.linear.default, (x, weight, None))
    pair = (product, bias) if fact["place"] == 0 else (bias, product)
    total = call_like(node, aten.add.Tensor, pair)
    edit.mark(total, path=fact["path"] or None)
    edit.replace(node, total)
