"""Fully connected layers, y = x·Wᵀ + b, and what is fused behind them. Roles: x […, K], weight [N, K], bias [N]."""

from typing import Any

import torch

from fxquant.graph.pattern import Match
from fxquant.ops.base import output_keeps_shape, quant_op, weight_is_parameter

aten = torch.ops.aten


def _residual_fits(match: Match) -> str | None:
    return weight_is_parameter(match) or output_keeps_shape(match)


@quant_op(guard=weight_is_parameter)
def linear(x: Any, weight: Any, bias: Any = None) -> Any:
    """y = x·Wᵀ + b."""
    return aten.linear.default(x, weight, bias)


@quant_op(guard=weight_is_parameter)
def linear_relu(x: Any, weight: Any, bias: Any = None) -> Any:
    """y = max(x·Wᵀ + b, 0)."""
    return aten.relu.default(aten.linear.default(x, weight, bias))


@quant_op(guard=weight_is_parameter)
def linear_gelu(x: Any, weight: Any, bias: Any = None, *, approximate: str) -> Any:
    """y = gelu(x·Wᵀ + b), exact or with the tanh approximation."""
    return aten.gelu.default(aten.linear.default(x, weight, bias), approximate=approximate)


@quant_op(guard=weight_is_parameter)
def linear_silu(x: Any, weight: Any, bias: Any = None) -> Any:
    """y = silu(x·Wᵀ + b)."""
    return aten.silu.default(aten.linear.default(x, weight, bias))


@quant_op(guard=_residual_fits)
def linear_add(x: Any, weight: Any, residual: Any, bias: Any = None) -> Any:
    """y = x·Wᵀ + b + residual."""
    return aten.add.Tensor(aten.linear.default(x, weight, bias), residual)
