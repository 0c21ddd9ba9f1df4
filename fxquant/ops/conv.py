"""Convolutions. Roles: x [B, C, …], weight [N, C/groups, …], bias [N]."""

from typing import Any

import torch

from fxquant.graph.edit import info
from fxquant.graph.pattern import Match
from fxquant.ops.base import quant_op, reads_float32, weight_is_parameter
from fxquant.ops.vectors import Example, Sizes, Vector, normal

aten = torch.ops.aten


def fits(match: Match) -> str | None:
    """Guard: the weight is a parameter, all tensors are float32, and x is a batch."""
    return weight_is_parameter(match) or reads_float32(match) or _is_a_batch(match)


def _is_a_batch(match: Match) -> str | None:
    x, weight = (info(value) if value is not None else None for value in (match.values["x"], match.values["weight"]))
    if x and weight and len(x.shape) != len(weight.shape):
        return f"x %{match.values['x']} is {list(x.shape)}, without an axis of the batch"
    return None


def over(axes: int) -> Example:
    """Return an example of a convolution over so many axes, of kernel 3 and stride 2."""

    def example(size: Sizes) -> Vector:
        parameters = {"weight": normal(size.columns, size.inner, *[3] * axes), "bias": normal(size.columns)}
        literals = {"stride": [2] * axes, "padding": [1] * axes, "dilation": [1] * axes, "groups": 1}
        return Vector({"x": normal(size.rows, size.inner, *[5] * axes)}, parameters, literals)

    return example


def _back_over(axes: int) -> Example:
    """Return the same of a transposed one."""

    def example(size: Sizes) -> Vector:
        plain = over(axes)(size)
        weight = plain.parameters["weight"].transpose(0, 1).contiguous()
        literals = {**plain.literals, "output_padding": [0] * axes}
        return Vector(plain.inputs, {**plain.parameters, "weight": weight}, literals)

    return example


@quant_op(guard=fits, example=over(1))
def conv1d(x: Any, weight: Any, bias: Any = None, *, stride: Any, padding: Any, dilation: Any, groups: Any) -> Any:
    """Convolution over one axis."""
    return aten.conv1d.default(x, weight, bias, stride, padding, dilation, groups)


@quant_op(guard=fits, example=over(2))
def conv2d(x: Any, weight: Any, bias: Any = None, *, stride: Any, padding: Any, dilation: Any, groups: Any) -> Any:
    """Convolution over two axes."""
    return aten.conv2d.default(x, weight, bias, stride, padding, dilation, groups)


@quant_op(guard=fits, example=over(3))
def conv3d(x: Any, weight: Any, bias: Any = None, *, stride: Any, padding: Any, dilation: Any, groups: Any) -> Any:
    """Convolution over three axes."""
    return aten.conv3d.default(x, weight, bias, stride, padding, dilation, groups)


@quant_op(guard=weight_is_parameter, example=_back_over(1))
def conv_transpose1d(
    x: Any, weight: Any, bias: Any = None, *, stride: Any, padding: Any, output_padding: Any, groups: Any, dilation: Any
) -> Any:
    """Transposed convolution over one axis; weight [C, N/groups, …]."""
    return aten.conv_transpose1d.default(x, weight, bias, stride, padding, output_padding, groups, dilation)


@quant_op(guard=weight_is_parameter, example=_back_over(2))
def conv_transpose2d(
    x: Any, weight: Any, bias: Any = None, *, stride: Any, padding: Any, output_padding: Any, groups: Any, dilation: Any
) -> Any:
    """Transposed convolution over two axes; weight [C, N/groups, …]."""
    return aten.conv_transpose2d.input(x, weight, bias, stride, padding, output_padding, groups, dilation)


@quant_op(guard=weight_is_parameter, example=_back_over(3))
def conv_transpose3d(
    x: Any, weight: Any, bias: Any = None, *, stride: Any, padding: Any, output_padding: Any, groups: Any, dilation: Any
) -> Any:
    """Transposed convolution over three axes; weight [C, N/groups, …]."""
    return aten.conv_transpose3d.input(x, weight, bias, stride, padding, output_padding, groups, dilation)
