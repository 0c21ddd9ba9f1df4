"""ATen's attention with names for its arguments; products around a softmax are that op in canonical graphs."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx

SDPA = torch.ops.aten.scaled_dot_product_attention.default


@dataclass(frozen=True)
class Spelled:
    """softmax(query·keyᵀ·scale + mask)·value over operands [B, H, S, D], computed by the node `result`.

    `scale` is None for 1/√D. A mask of truth values says which keys take part. `grouped`: keys may have fewer heads.
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


def spelled(gm: fx.GraphModule) -> Iterator[Spelled]:
    """Yield the attentions of a graph in its order."""
    for node in gm.graph.find_nodes(op="call_function", target=SDPA):
        given: Any = node.args
        query, key, value, mask, dropout, causal = given
        options = cast(dict[str, Any], node.kwargs)
        yield Spelled(node, query, key, value, mask, options["scale"], causal, options["enable_gqa"], dropout)
