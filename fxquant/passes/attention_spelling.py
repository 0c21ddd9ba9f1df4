"""ATen's attention with names for its arguments; products around a softmax are that op in canonical graphs."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx

SDPA = torch.ops.aten.scaled_dot_product_attention.default


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
    for node in gm.graph.find_nodes(op="call_function", target=SDPA):
        given: Any = node.args
        query, key, value, mask, dropout, causal = given
        masks, options = () if mask is None else (mask,), cast(dict[str, Any], node.kwargs)
        scale, grouped = options["scale"], options["enable_gqa"]
        yield Spelled(node, (node,), query, key, value, masks, scale, causal, grouped, dropout)
