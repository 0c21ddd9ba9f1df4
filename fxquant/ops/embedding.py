"""Table look-ups. Roles: weight [V, D], indices […] of integers."""

from typing import Any

import torch

from fxquant.ops.base import quant_op, weight_is_parameter

aten = torch.ops.aten


@quant_op(guard=weight_is_parameter)
def embedding(weight: Any, indices: Any, *, padding_idx: int, scale_grad_by_freq: bool, sparse: bool) -> Any:
    """y = weight[indices]."""
    return aten.embedding.default(weight, indices, padding_idx, scale_grad_by_freq, sparse)
