"""Products of two activations: matrix products and scaled dot-product attention."""

from typing import Any

import torch

from fxquant.graph.edit import info
from fxquant.graph.pattern import Match
from fxquant.ops.base import quant_op, reads_float32
from fxquant.ops.vectors import Sizes, Vector, normal

aten = torch.ops.aten


def _matrices(match: Match) -> str | None:
    for role in ("a", "b"):
        value = match.values[role]
        known = info(value) if value else None
        if known and len(known.shape) < 2:
            return f"{role} %{value} is a vector, not a matrix"
    return reads_float32(match)


def _product_example(size: Sizes) -> Vector:
    return Vector({"a": normal(2, size.rows, size.inner), "b": normal(2, size.inner, size.columns)})


def _attention_example(size: Sizes) -> Vector:
    names = ("query", "key", "value")
    inputs = {name: normal(1, 2 + place, size.rows, size.inner)[:, :2] for place, name in enumerate(names)}
    return Vector(inputs, literals={"dropout_p": 0.0, "is_causal": False, "scale": None, "enable_gqa": False})


@quant_op(guard=_matrices, example=_product_example)
def matmul(a: Any, b: Any) -> Any:
    """y = a·b, batched; a […, M, K], b […, K, N]."""
    return aten.matmul.default(a, b)


@quant_op(example=_attention_example)
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
