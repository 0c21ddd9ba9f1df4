"""Convolutions. Roles: x [B, C, …], weight [N, C/groups, …], bias [N]."""

from typing import Any

import torch

from fxquant.ops.base import quant_op, weight_is_parameter

aten = torch.ops.aten


@quant_op(guard=weight_is_parameter)
def conv1d(x: Any, weight: Any, bias: Any = None, *, stride: Any, padding: Any, dilation: Any, groups: Any) -> Any:
    """Convolution over one axis."""
    return aten.conv1d.default(x, weight, bias, stride, padding, dilation, groups)


@quant_op(guard=weight_is_parameter)
def conv2d(x: Any, weight: Any, bias: Any = None, *, stride: Any, padding: Any, dilation: Any, groups: Any) -> Any:
    """Convolution over two axes."""
    return aten.conv2d.default(x, weight, bias, stride, padding, dilation, groups)


@quant_op(guard=weight_is_parameter)
def conv3d(x: Any, weight: Any, bias: Any = None, *, stride: Any, padding: Any, dilation: Any, groups: Any) -> Any:
    """Convolution over three axes."""
    return aten.conv3d.default(x, weight, bias, stride, padding, dilation, groups)
