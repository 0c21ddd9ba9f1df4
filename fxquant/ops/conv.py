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


@quant_op(guard=weight_is_parameter)
def conv_transpose1d(
    x: Any, weight: Any, bias: Any = None, *, stride: Any, padding: Any, output_padding: Any, groups: Any, dilation: Any
) -> Any:
    """Transposed convolution over one axis; weight [C, N/groups, …]."""
    return aten.conv_transpose1d.default(x, weight, bias, stride, padding, output_padding, groups, dilation)


@quant_op(guard=weight_is_parameter)
def conv_transpose2d(
    x: Any, weight: Any, bias: Any = None, *, stride: Any, padding: Any, output_padding: Any, groups: Any, dilation: Any
) -> Any:
    """Transposed convolution over two axes; weight [C, N/groups, …]."""
    return aten.conv_transpose2d.input(x, weight, bias, stride, padding, output_padding, groups, dilation)


@quant_op(guard=weight_is_parameter)
def conv_transpose3d(
    x: Any, weight: Any, bias: Any = None, *, stride: Any, padding: Any, output_padding: Any, groups: Any, dilation: Any
) -> Any:
    """Transposed convolution over three axes; weight [C, N/groups, …]."""
    return aten.conv_transpose3d.input(x, weight, bias, stride, padding, output_padding, groups, dilation)
