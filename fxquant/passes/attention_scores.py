"""What an attention that is written out does between its two products: scales and masks, read from the softmax down.

A score that a mask replaces by −1e30 or less counts as one that the mask is added to: for a query of which every key is
hidden both give the mean of the values, since the score is lost in the sum.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from fxquant.graph import edit
from fxquant.passes.canonical_facts import dtype_of, sizes

aten = torch.ops.aten
MATMUL = aten.matmul.default
HIDDEN = -1e30


@dataclass
class Scores:
    """What is read from a softmax down to the product of query and key.

    `masks` in the order in which they apply: a tensor to "add" times a number, or a condition that says where to "fill"
    in a number, or where to "keep" the scores and fill it in elsewhere. `split` is the reshape that parts heads.
    """

    scale: float = 1.0
    masks: list[tuple[str, Any, float]] = field(default_factory=list)
    split: Any = None
    product: Any = None


def _only(node: Any, target: Any) -> bool:
    return isinstance(node, fx.Node) and node.target is target and len(node.users) == 1


def behind_reshapes(node: Any) -> tuple[Any, Any]:
    """Return what is behind reshapes that merge or part the first axes, and the one that parts them."""
    split = None
    while _only(node, aten.reshape.default):
        before, after = sizes(node.args[0]), sizes(node)
        if before is None or after is None or before[-2:] != after[-2:]:
            return None, None
        split = node if len(after) == 4 and len(before) == 3 else split
        node = node.args[0]
    return (node if isinstance(node, fx.Node) and len(node.users) == 1 else None), split


def read_scores(gm: fx.GraphModule, node: Any) -> Scores | None:
    """Read masks and scale between a softmax and the product of query and key."""
    found = Scores()
    while True:
        node, split = behind_reshapes(node)
        found.split = split or found.split
        if node is None:
            return None
        if node.target is MATMUL:
            found.product = node
            return found
        node = STEPS[node.target](gm, node, found) if node.target in STEPS else None


def _scaled(gm: fx.GraphModule, node: Any, found: Scores) -> Any:
    scores, factor = node.args[:2]
    if not isinstance(factor, int | float) or not factor:
        return None
    found.scale *= factor if node.target is aten.mul.Tensor else 1 / factor
    return scores


def _added(gm: fx.GraphModule, node: Any, found: Scores) -> Any:
    first, second = node.args
    if isinstance(second, int | float):
        return first  # the same for all keys, which a softmax does not see
    sign = -1 if node.target is aten.sub.Tensor else 1
    scores, mask = (first, second) if _has_product(first) else (second, first)
    if (sign < 0 and scores is second) or node.kwargs["alpha"] != 1 or dtype_of(mask) != dtype_of(node):
        return None
    if mask.target is not aten.zeros.default:
        found.masks.insert(0, ("add", mask, sign * found.scale))
    return scores


def _filled(gm: fx.GraphModule, node: Any, found: Scores) -> Any:
    scores, condition, number = node.args
    return _hidden(found, "fill", condition, number, scores)


def _chosen(gm: fx.GraphModule, node: Any, found: Scores) -> Any:
    condition, scores, number = node.args
    return _hidden(found, "keep", condition, _number(gm, number), scores)


def _hidden(found: Scores, kind: str, condition: Any, number: float | None, scores: Any) -> Any:
    if number is None or number > HIDDEN or found.scale != 1:
        return None
    found.masks.insert(0, (kind, condition, float(number)))
    return scores


def _bounded(gm: fx.GraphModule, node: Any, found: Scores) -> Any:
    number = _number(gm, node.args[1])
    return node.args[0] if number is not None and number <= HIDDEN else None  # no finite score is less


# Each returns the scores that a call reads, or None where the call is none that attention has.
STEPS: dict[Any, Callable[[fx.GraphModule, Any, Scores], Any]] = {
    aten.mul.Tensor: _scaled,
    aten.div.Tensor: _scaled,
    aten.add.Tensor: _added,
    aten.sub.Tensor: _added,
    aten.masked_fill.Scalar: _filled,
    aten.where.self: _chosen,
    aten.max.other: _bounded,
}


def _number(gm: fx.GraphModule, node: Any) -> float | None:
    """Return the number that a tensor without axes is."""
    if edit.is_constant(node) and edit.get_tensor(gm, node).numel() == 1:
        return float(edit.get_tensor(gm, node))
    if isinstance(node, fx.Node) and node.target in (aten.full.default, aten.scalar_tensor.default):
        number = node.args[1] if node.target is aten.full.default else node.args[0]
        return float(number) if isinstance(number, int | float) and sizes(node) == () else None
    return None


def _has_product(node: Any) -> bool:
    """Say whether a product of two activations is behind a chain of calls on scores."""
    while isinstance(node, fx.Node) and node.target is not MATMUL:
        node = node.args[1] if node.target is aten.where.self else node.args[0] if node.args else None
        if isinstance(node, fx.Node) and node.target is aten.softmax.int:
            return False
    return isinstance(node, fx.Node)
