"""Attentions of canonical graphs with names for their arguments: ATen's op, and those that cap their scores.

Products around a softmax are ATen's op in canonical graphs, but for scores that a tanh bounds, which it has no argument
for: softmax(cap·tanh(query·keyᵀ·scale / cap) + mask)·value stays spelled out.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx

from fxquant.graph import edit

aten = torch.ops.aten
SDPA = aten.scaled_dot_product_attention.default
MATMUL = aten.matmul.default


@dataclass(frozen=True)
class Spelled:
    """softmax(query·keyᵀ·scale + mask)·value over operands [B, H, S, D], computed by the node `result`.

    `scale` is None for 1/√D. A mask of truth values says which keys take part. `grouped`: keys may have fewer heads.
    With `cap`, scores s become cap·tanh(s / cap) before the mask is added. `nodes` compute all of it.
    """

    result: fx.Node
    query: fx.Node
    key: fx.Node
    value: fx.Node
    mask: fx.Node | None
    scale: float | None
    causal: bool
    grouped: bool
    dropout: float
    nodes: tuple[fx.Node, ...]
    cap: float | None = None


def spelled(gm: fx.GraphModule) -> Iterator[Spelled]:
    """Yield the attentions of a graph that ATen's op computes, in its order."""
    for node in gm.graph.find_nodes(op="call_function", target=SDPA):
        given: Any = node.args
        query, key, value, mask, dropout, causal = given
        options = cast(dict[str, Any], node.kwargs)
        scale, grouped = options["scale"], options["enable_gqa"]
        yield Spelled(node, query, key, value, mask, scale, causal, grouped, dropout, (node,))


def capped(gm: fx.GraphModule) -> Iterator[Spelled]:
    """Yield the attentions of a graph that cap their scores, in its order."""
    for node in gm.graph.find_nodes(op="call_function", target=MATMUL):
        found = _read_capped(node)
        if found is not None:
            yield found


def _read_capped(result: fx.Node) -> Spelled | None:
    operands: Any = result.args
    softmax, value = operands
    scores = softmax.args[0] if _once(softmax, aten.softmax.int) and softmax.args[1] in (-1, 3) else None
    scores, mask, sums = _unmasked(scores)
    scaled, cap, bounds = _uncapped(scores)
    product, scale, scales = _unscaled(scaled)
    if cap is None or not _once(product, MATMUL) or not isinstance(value, fx.Node):
        return None
    query, turned = product.args
    known = edit.info(product)
    if not _is(turned, aten.transpose.int) or known is None or len(known.shape) != 4:
        return None
    if turned.args[1:] not in ((2, 3), (3, 2), (-2, -1), (-1, -2)):
        return None
    nodes = (product, *scales, *bounds, *sums, softmax, result)
    return Spelled(result, query, turned.args[0], value, mask, scale, False, False, 0.0, nodes, cap)


Read = tuple[Any, Any, tuple[fx.Node, ...]]


def _unmasked(node: Any) -> Read:
    """Return scores, the mask that is added to them, and the nodes that do so."""
    if not _once(node, aten.add.Tensor) or node.kwargs["alpha"] != 1:
        return node, None, ()
    first, second = node.args
    scores, mask = (
        (second, first) if _once(second, aten.mul.Tensor) and second.args[0] is not first else (first, second)
    )
    return (scores, mask, (node,)) if isinstance(mask, fx.Node) else (node, None, ())


def _uncapped(node: Any) -> Read:
    """Return what a number times the tanh of its share of that number bounds, and the number; None where none does."""
    tanh: Any = node.args[0] if _once(node, aten.mul.Tensor) else None
    over, cap = (tanh.args[0], node.args[1]) if _once(tanh, aten.tanh.default) else (None, None)
    scores, share, dividing = _unscaled(over)
    if not dividing or not isinstance(cap, int | float) or abs(cap * share - 1) > 1e-6:
        return node, None, ()
    return scores, float(cap), (*dividing, tanh, node)


def _unscaled(node: Any) -> Read:
    """Return what a node multiplies with, or divides by, a number, and the factor; 1 for any other node."""
    factor = node.args[1] if _once(node, aten.mul.Tensor) or _once(node, aten.div.Tensor) else None
    if not isinstance(factor, int | float) or not factor:
        return node, 1.0, ()
    return node.args[0], float(factor if node.target is aten.mul.Tensor else 1 / factor), (node,)


def _is(node: Any, target: Any) -> bool:
    return isinstance(node, fx.Node) and node.target is target


def _once(node: Any, target: Any) -> bool:
    return _is(node, target) and len(node.users) == 1
