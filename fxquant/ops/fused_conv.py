"""Convolutions with what follows them. Roles as in conv.py; a residual is of the result's shape."""

from dataclasses import replace
from typing import Any

import torch

from fxquant.graph.pattern import Match
from fxquant.ops.base import output_keeps_shape, quant_op
from fxquant.ops.conv import fits, over
from fxquant.ops.vectors import Example, Sizes, Vector, normal

aten = torch.ops.aten


def _gelu_over(axes: int) -> Example:
    """Return the example of a convolution with a GELU behind it."""

    def example(size: Sizes) -> Vector:
        plain = over(axes)(size)
        return replace(plain, literals={**plain.literals, "approximate": "none"})

    return example


def _residual_example(size: Sizes) -> Vector:
    plain = over(2)(size)
    return replace(plain, inputs={**plain.inputs, "residual": normal(size.rows, size.columns, 3, 3)})


def _residual_fits(match: Match) -> str | None:
    refused = fits(match)
    if refused is not None:
        return refused
    relu, inner = match.anchor.target is aten.relu.default, match.nodes
    return output_keeps_shape(replace(match, nodes=inner[1:], anchor=inner[1]) if relu else match)


@quant_op(guard=fits, example=over(1))
def conv1d_relu(x: Any, weight: Any, bias: Any = None, *, stride: Any, padding: Any, dilation: Any, groups: Any) -> Any:
    """y = max(convolution over one axis, 0)."""
    return aten.relu.default(aten.conv1d.default(x, weight, bias, stride, padding, dilation, groups))


@quant_op(guard=fits, example=_gelu_over(1))
def conv1d_gelu(
    x: Any, weight: Any, bias: Any = None, *, stride: Any, padding: Any, dilation: Any, groups: Any, approximate: str
) -> Any:
    """y = gelu(convolution over one axis), exact or with the tanh approximation."""
    product = aten.conv1d.default(x, weight, bias, stride, padding, dilation, groups)
    return aten.gelu.default(product, approximate=approximate)


@quant_op(guard=fits, example=over(2))
def conv2d_relu(x: Any, weight: Any, bias: Any = None, *, stride: Any, padding: Any, dilation: Any, groups: Any) -> Any:
    """y = max(convolution over two axes, 0)."""
    return aten.relu.default(aten.conv2d.default(x, weight, bias, stride, padding, dilation, groups))


@quant_op(guard=fits, example=_gelu_over(2))
def conv2d_gelu(
    x: Any, weight: Any, bias: Any = None, *, stride: Any, padding: Any, dilation: Any, groups: Any, approximate: str
) -> Any:
    """y = gelu(convolution over two axes), exact or with the tanh approximation."""
    product = aten.conv2d.default(x, weight, bias, stride, padding, dilation, groups)
    return aten.gelu.default(product, approximate=approximate)


@quant_op(guard=fits, example=over(2))
def conv2d_silu(x: Any, weight: Any, bias: Any = None, *, stride: Any, padding: Any, dilation: Any, groups: Any) -> Any:
    """y = silu(convolution over two axes)."""
    return aten.silu.default(aten.conv2d.default(x, weight, bias, stride, padding, dilation, groups))


@quant_op(guard=_residual_fits, example=_residual_example)
def conv2d_add(
    x: Any, weight: Any, residual: Any, bias: Any = None, *, stride: Any, padding: Any, dilation: Any, groups: Any
) -> Any:
    """y = convolution over two axes + residual."""
    return aten.add.Tensor(aten.conv2d.default(x, weight, bias, stride, padding, dilation, groups), residual)


@quant_op(guard=_residual_fits, example=_residual_example)
def conv2d_add_relu(
    x: Any, weight: Any, residual: Any, bias: Any = None, *, stride: Any, padding: Any, dilation: Any, groups: Any
) -> Any:
    """y = max(convolution over two axes + residual, 0)."""
    product = aten.conv2d.default(x, weight, bias, stride, padding, dilation, groups)
    return aten.relu.default(aten.add.Tensor(product, residual))
