"""The two ways in which a graph spells attention: ATen's one op, and two products around a softmax."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx

from fxquant.graph import edit

aten = torch.ops.aten
SDPA = aten.scaled_dot_product_attention.default
LAST_TWO = ((2, 3), (3, 2), (-1, -2), (-2, -1))


@dataclass(frozen=True)
class Spelled:
    """softmax(query·keyᵀ·scale + Σ masks)·value over operands [B, H, S, D].

    `result` is its node, and `nodes` all that compute it, which nothing else reads. `scale` is None for 1/√D. A mask of
    truth values says which keys take part; it then is the only one. `grouped` allows fewer heads of keys than queries.
    """

    result: fx.Node
    nodes: tuple[fx.Node, ...]
    query: fx.Node
    key: fx.Node
    value: fx.Node
    masks: tuple[fx.Node, ...]
    scale: float | None
    causal: bool
    grouped: bool
    dropout: float


def spelled(gm: fx.GraphModule) -> Iterator[Spelled]:
    """Yield the attentions of a graph in its order."""
    for node in list(gm.graph.nodes):
        found = _one_op(node) if node.target is SDPA else _around_softmax(node) if node.op == "call_function" else None
        if found is not None:
            yield found


def _one_op(node: fx.Node) -> Spelled:
    given: Any = node.args
    query, key, value, mask, dropout, causal = given
    masks, options = () if mask is None else (mask,), cast(dict[str, Any], node.kwargs)
    scale, grouped = options["scale"], options["enable_gqa"]
    return Spelled(node, (node,), query, key, value, masks, scale, causal, grouped, dropout)


def _around_softmax(product: fx.Node) -> Spelled | None:
    """Read matmul(softmax(matmul(q, transpose(k)) · c + masks), v)."""
    softmax = _only(product.args[0], aten.softmax.int) if product.target is aten.matmul.default else None
    if softmax is None or softmax.args[1] not in (-1, 3) or softmax.args[2] not in (None, torch.float32):
        return None
    nodes, masks, scores = [product, softmax], list[fx.Node](), softmax.args[0]
    while (added := _only(scores, aten.add.Tensor)) is not None:
        scores, mask = _scores_first(added)
        if mask is None or added.kwargs["alpha"] != 1:
            return None
        nodes.append(added)
        masks.insert(0, mask)
    scale = 1.0
    for target, power in ((aten.mul.Tensor, 1), (aten.div.Tensor, -1)):
        scaled = _only(scores, target)
        if scaled is not None and isinstance(scaled.args[1], int | float) and scaled.args[1]:
            scale, scores = scale * float(scaled.args[1]) ** power, scaled.args[0]
            nodes.append(scaled)
    first = _only(scores, aten.matmul.default)
    key: Any = first.args[1] if first is not None else None
    if (
        first is None
        or not isinstance(key, fx.Node)
        or key.target is not aten.transpose.int
        or key.args[1:] not in LAST_TWO
    ):
        return None
    query, source, value = first.args[0], key.args[0], product.args[1]
    assert isinstance(query, fx.Node) and isinstance(source, fx.Node) and isinstance(value, fx.Node)
    return Spelled(product, (*nodes, first), query, source, value, tuple(masks), scale, False, False, 0.0)


def _only(node: Any, target: Any) -> fx.Node | None:
    """Return a node if it is a call of `target` that has one reader."""
    return node if isinstance(node, fx.Node) and node.target is target and len(node.users) == 1 else None


def _scores_first(added: fx.Node) -> tuple[Any, fx.Node | None]:
    """Return the operands of a sum, the one that products compute first; None for a mask that is no float tensor."""
    a, b = added.args[:2]
    if not _computes_scores(a):
        a, b = b, a
    known = edit.info(b) if isinstance(b, fx.Node) else None
    return a, b if known is not None and known.dtype is torch.float32 and isinstance(b, fx.Node) else None


def _computes_scores(node: Any) -> bool:
    """Say whether a product of two activations is at the head of a chain of sums and scalings."""
    while isinstance(node, fx.Node) and node.target in (aten.add.Tensor, aten.mul.Tensor, aten.div.Tensor):
        node = node.args[0]
    return isinstance(node, fx.Node) and node.target is aten.matmul.default
