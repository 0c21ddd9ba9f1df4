"""Table look-ups. Roles: weight [V, D], indices […] of integers."""

from typing import Any

import torch

from fxquant.ops.base import quant_op, weight_is_parameter
from fxquant.ops.vectors import Sizes, Vector, normal

aten = torch.ops.aten


def _example(size: Sizes) -> Vector:
    literals = {"padding_idx": -1, "scale_grad_by_freq": False, "sparse": False}
    indices = torch.arange(size.rows) % size.columns
    return Vector({"indices": indices}, {"weight": normal(size.columns, size.inner)}, literals)


@quant_op(guard=weight_is_parameter, example=_example)
def embedding(weight: Any, indices: Any, *, padding_idx: int, scale_grad_by_freq: bool, sparse: bool) -> Any:
    """y = weight[indices]."""
    return aten.embedding.default(weight, indices, padding_idx, scale_grad_by_freq, sparse)
