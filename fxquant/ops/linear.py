"""Fully connected layers, y = x·Wᵀ + b, and what is fused behind them. Roles: x […, K], weight [N, K], bias [N]."""

from dataclasses import replace
from typing import Any

import torch

from fxquant.graph.edit import info
from fxquant.graph.pattern import Match
from fxquant.ops.base import output_keeps_shape, quant_op, reads_float32, weight_is_parameter
from fxquant.ops.vectors import Sizes, Vector, normal

aten = torch.ops.aten


def _fits(match: Match) -> str | None:
    return weight_is_parameter(match) or reads_float32(match) or _bias_is_a_vector(match)


def _residual_fits(match: Match) -> str | None:
    return _fits(match) or output_keeps_shape(match)


def _bias_is_a_vector(match: Match) -> str | None:
    weight, bias = match.values["weight"], match.values["bias"]
    rows, known = info(weight) if weight else None, info(bias) if bias else None
    if rows and known and known.shape != rows.shape[:1]:
        return f"bias %{bias} is {list(known.shape)}, not one value for each of the {rows.shape[0]} outputs"
    return None


def _example(size: Sizes) -> Vector:
    parameters = {"weight": normal(size.columns, size.inner), "bias": normal(size.columns)}
    return Vector({"x": normal(size.rows, size.inner)}, parameters)


def _gelu_example(size: Sizes) -> Vector:
    return replace(_example(size), literals={"approximate": "none"})


def _residual_example(size: Sizes) -> Vector:
    plain = _example(size)
    return replace(plain, inputs={**plain.inputs, "residual": normal(size.rows, size.columns)})


@quant_op(guard=_fits, example=_example)
def linear(x: Any, weight: Any, bias: Any = None) -> Any:
    """y = x·Wᵀ + b."""
    return aten.linear.default(x, weight, bias)


@quant_op(guard=_fits, example=_example)
def linear_relu(x: Any, weight: Any, bias: Any = None) -> Any:
    """y = max(x·Wᵀ + b, 0)."""
    return aten.relu.default(aten.linear.default(x, weight, bias))


@quant_op(guard=_fits, example=_gelu_example)
def linear_gelu(x: Any, weight: Any, bias: Any = None, *, approximate: str) -> Any:
    """y = gelu(x·Wᵀ + b), exact or with the tanh approximation."""
    return aten.gelu.default(aten.linear.default(x, weight, bias), approximate=approximate)


@quant_op(guard=_fits, example=_example)
def linear_silu(x: Any, weight: Any, bias: Any = None) -> Any:
    """y = silu(x·Wᵀ + b)."""
    return aten.silu.default(aten.linear.default(x, weight, bias))


@quant_op(guard=_residual_fits, example=_residual_example)
def linear_add(x: Any, weight: Any, residual: Any, bias: Any = None) -> Any:
    """y = x·Wᵀ + b + residual."""
    return aten.add.Tensor(aten.linear.default(x, weight, bias), residual)
