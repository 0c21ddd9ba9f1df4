"""Scaled dot-product attention → `fxquant::attention`, which reads and writes heads where linears leave them.

ATen's attention takes [B, H, S, D], so around it stand a view and a transpose for each operand and for the result. The
kernel takes [B, S, H·D]: they go. Where query, key and value are columns of one tensor, the kernel reads that. Keys and
values that the graph repeats for groups of queries are read once. Operands that are made as [B, H, S, D], as rotary
embeddings make them, are read by their strides.

softmax(q·kᵀ·scale + mask)·v is computed with other roundings than torch's (docs/kernels.md). A query from which −∞
hides every key gets zeros, as from ATen's op; where the softmax is spelled out it got NaN.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from fxquant.graph import edit
from fxquant.kernels.cpu import native
from fxquant.kernels.table import FUSES
from fxquant.passes.attention_heads import Heads, flat, hand_on, mask_of, read_heads, rows_of
from fxquant.passes.attention_spelling import Spelled, spelled
from fxquant.passes.claims import hand_over

ATTENTION = torch.ops.fxquant.attention.default


@dataclass(frozen=True)
class FuseAttention:
    """Replace attention in float32 by the kernel, and drop the views and transposes around it.

    What cannot be replaced keeps its reason in `fallback`. Where the kernel set that the graph is lowered for has no
    kernel of attention here, as without the C++ core, all stays as it is.
    """

    name: ClassVar[str] = "fuse_attention"
    after: ClassVar[tuple[str, ...]] = ("lower", "merge_linears", "sink_quantize")

    def apply(self, gm: fx.GraphModule) -> int:
        """Return how many attentions became the kernel."""
        count = 0
        available = FUSES.get(edit.marks(gm).get("kernels", ""), native.available)
        for attention in spelled(gm) if available() else ():
            heads = read_heads(attention)
            if isinstance(heads, str):
                edit.mark(attention.result, fallback=f"kernel attention: {heads}")
                continue
            _replace(attention, heads)
            count += 1
        edit.sweep(gm)
        return count


def _replace(attention: Spelled, read: Heads) -> None:
    node, graph = attention.result, attention.result.graph
    mask = mask_of(attention)
    with graph.inserting_before(node):
        rows, _ = rows_of(read.query, read.key, read.value)
        tail = (mask, None, read.heads, read.kv_heads, read.scale, attention.causal)
        new = edit.call(graph, ATTENTION, (*rows, *tail), like=node, value=flat(node))
    hand_over((attention.result,), new)
    hand_on(node, new, read)
    graph.erase_node(node)
