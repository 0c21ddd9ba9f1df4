"""Products of two activations: matrix products and scaled dot-product attention."""

from typing import Any

import torch

from fxquant.graph.edit import info
from fxquant.graph.pattern import Match
from fxquant.ops.base import quant_op, reads_float32

aten = torch.ops.aten


def _matrices(match: Match) -> str | None:
    for role in ("a", "b"):
        value = match.values[role]
        known = info(value) if value else None
        if known and len(known.shape) < 2:
            return f"{role} %{value} is a vector, not a matrix"
    return reads_float32(match)


@quant_op(guard=_matrices)
def matmul(a: Any, b: Any) -> Any:
    """y = a·b, batched; a […, M, K], b […, K, N]."""
    return aten.matmul.default(a, b)


@quant_op()
def attention(
    query: Any,
    key: Any,
    value: Any,
    mask: Any = None,
    *,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> Any:
    """y = softmax(q·kᵀ·scale + mask)·v; query [B, H, S, D]."""
    return aten.scaled_dot_product_attention.default(
        query, key, value, mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )
