"""A constant vector added to a linear without a bias is that linear's bias."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from fxquant.graph import edit
from fxquant.passes.canonical_facts import same_type, sizes

aten = torch.ops.aten


@dataclass(frozen=True)
class FoldBias:
    """Fold `linear(x, weight) + b` into `linear(x, weight, b)`, also through a reshape that keeps the last axis.

    b is a constant of N values, [N] or [1, …, N], and nothing else reads the product. A kernel may start its sums from
    b rather than add it last: within u·(|b| + Σ|x·w|) for each of the K additions.
    """

    name: ClassVar[str] = "fold_bias"
    after: ClassVar[tuple[str, ...]] = ("products_to_linear",)

    def apply(self, gm: fx.GraphModule) -> int:
        order = {node: position for position, node in enumerate(gm.graph.nodes)}
        return sum(_fold(gm, node, order) for node in list(gm.graph.nodes) if node.target is aten.add.Tensor)


def _fold(gm: fx.GraphModule, node: fx.Node, order: dict[fx.Node, int]) -> bool:
    first, second, alpha = edit.arguments(node)
    for product, bias in ((first, second), (second, first)):
        linear = _linear_behind(product)
        if linear is None or alpha != 1 or not same_type(node, product):
            continue
        width = (sizes(linear) or ())[-1:]
        if edit.is_constant(bias) and order[bias] < order[linear] and _is_vector(bias, width):
            edit.set_argument(linear, 2, bias if sizes(bias) == width else _flattened(gm, bias))
            edit.replace(node, product)
            return True
    return False


def _is_vector(bias: fx.Node, width: tuple[Any, ...]) -> bool:
    """Say whether a constant is [width], but for axes of size one before it."""
    shape = sizes(bias) or ()
    return bool(width) and shape[-1:] == width and all(size == 1 for size in shape[:-1])


def _flattened(gm: fx.GraphModule, bias: fx.Node) -> fx.Node:
    """Return the constant [N] for one that is [1, …, N], as Marian's final bias is."""
    return edit.add_constant(gm, f"{bias.target}_vector", edit.get_tensor(gm, bias).flatten(), bias)


def _linear_behind(node: Any) -> fx.Node | None:
    """Return the bias-less linear whose outputs `node` holds in order, if nothing else reads them."""
    if not isinstance(node, fx.Node) or len(node.users) != 1:
        return None
    if node.target is aten.reshape.default:
        source = node.args[0]
        before, after = sizes(source), sizes(node)
        keeps_last = before is not None and after is not None and before[-1:] == after[-1:]
        return _linear_behind(source) if keeps_last else None
    return node if node.target is aten.linear.default and node.args[2] is None else None
