"""Multiply-accumulates of the ATen ops that do matrix arithmetic, at the example shape."""

from collections.abc import Callable
from math import prod

import torch
from torch import fx

from fxquant.graph.edit import TensorInfo, info

aten = torch.ops.aten
LINEAR, ATTENTION, CONVOLUTION = "linear", "attention", "convolution"


def _shape(node: object) -> tuple[int, ...]:
    known = info(node) if isinstance(node, fx.Node) else None
    return known.shape if known else ()


def _contraction(node: fx.Node) -> int:
    """MACs of a product that contracts the last axis of its first factor."""
    return prod(_shape(node)) * (_shape(node.args[0]) or (0,))[-1]


def _added_product(node: fx.Node) -> int:
    return prod(_shape(node)) * (_shape(node.args[1]) or (0,))[-1]


def _convolution(node: fx.Node) -> int:
    return prod(_shape(node)) * prod(_shape(node.args[1])[1:])


def _transposed_convolution(node: fx.Node) -> int:
    return prod(_shape(node.args[0])) * prod(_shape(node.args[1])[1:])


def _attention(node: fx.Node) -> int:
    """MACs of q·kᵀ and of the product with v: B·H·S·T·(D + Dv)."""
    query, key, value = (_shape(arg) for arg in node.args[:3])
    if not (query and key and value):
        return 0
    return prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


# What a product of matrices counts under, and how many multiply-accumulates it does.
MACS: dict[object, tuple[str, Callable[[fx.Node], int]]] = {
    aten.linear.default: (LINEAR, _contraction),
    aten.mm.default: (LINEAR, _contraction),
    aten.addmm.default: (LINEAR, _added_product),
    aten._grouped_mm.default: (LINEAR, _contraction),
    aten.matmul.default: (ATTENTION, _contraction),
    aten.bmm.default: (ATTENTION, _contraction),
    aten.baddbmm.default: (ATTENTION, _added_product),
    aten.scaled_dot_product_attention.default: (ATTENTION, _attention),
    aten.conv1d.default: (CONVOLUTION, _convolution),
    aten.conv2d.default: (CONVOLUTION, _convolution),
    aten.conv3d.default: (CONVOLUTION, _convolution),
    aten.conv_transpose1d.default: (CONVOLUTION, _transposed_convolution),
    aten.conv_transpose2d.input: (CONVOLUTION, _transposed_convolution),
}


def macs(node: fx.Node) -> int:
    """Return the multiply-accumulates of `node` at the example shape; 0 for an op that does no matrix arithmetic."""
    return MACS[node.target][1](node) if node.target in MACS else 0


def family(node: fx.Node) -> str | None:
    """Return "linear", "attention" or "convolution" for matrix arithmetic, None for any other op."""
    return MACS[node.target][0] if node.target in MACS else None


def floating(known: TensorInfo | None) -> bool:
    """Say whether a tensor holds floating-point numbers."""
    return known is not None and known.dtype.is_floating_point
