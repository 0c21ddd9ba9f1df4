"""Linears of experts. Roles: x [S, K] sorted by expert, weight [E·N, K], offsets [E], where the groups of rows end."""

from typing import Any

import torch

import fxquant.kernels.reference.grouped  # registers the op of the pattern
from fxquant.graph.edit import info
from fxquant.graph.pattern import Match
from fxquant.ops.base import quant_op, weight_is_parameter
from fxquant.ops.vectors import Sizes, Vector, normal

assert fxquant.kernels.reference.grouped


def _fits(match: Match) -> str | None:
    refused = weight_is_parameter(match)
    x = match.values["x"]
    known = info(x) if x is not None else None
    if refused is None and known is not None and known.dtype is not torch.float32:
        return f"x %{x} is {known.dtype}, not torch.float32"
    return refused


def _example(size: Sizes) -> Vector:
    ends = torch.tensor([size.rows // 2, size.rows], dtype=torch.int32)  # two experts
    inputs = {"x": normal(size.rows, size.inner), "offsets": ends}
    return Vector(inputs, {"weight": normal(2 * size.columns, size.inner)})


@quant_op(guard=_fits, example=_example)
def grouped_linear(x: Any, weight: Any, offsets: Any) -> Any:
    """Each group of rows of x times the weight of its expert."""
    return torch.ops.fxquant.grouped_linear.default(x, weight, offsets)
