"""Multiply-accumulates of the ATen ops that do matrix arithmetic, at the example shape."""

from collections.abc import Callable
from math import prod

import torch
from torch import fx

import fxquant.kernels.reference.grouped  # registers an op of the table
from fxquant.graph.edit import TensorInfo, info

assert fxquant.kernels.reference.grouped
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


def _contracted(node: fx.Node) -> list[int]:
    """Return the sizes that a tensordot sums over."""
    shape = _shape(node.args[0])
    return [shape[axis] for axis in node.args[2]]  # type: ignore[index, union-attr]


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


def _einsum(node: fx.Node) -> int:
    """MACs of an einsum: the product of the sizes of all its indices; an ellipsis counts by the result."""
    equation, operands = str(node.args[0]).replace(" ", ""), node.args[1]
    sizes: dict[str, int] = {}
    for term, operand in zip(equation.partition("->")[0].split(","), operands, strict=True):  # type: ignore[arg-type]
        head, dots, tail = term.partition("...")
        shape = _shape(operand)
        sizes |= dict(zip(head, shape, strict=False)) | dict(zip(reversed(tail), reversed(shape), strict=False))
        if dots:
            sizes["..."] = max(sizes.get("...", 1), prod(shape[len(head) : len(shape) - len(tail)]))
    return prod(sizes.values())


def _recurrent(node: fx.Node) -> int:
    """MACs of an LSTM or GRU: every weight matrix once a token."""
    weights = [arg for arg in node.args[2] if len(_shape(arg)) == 2]  # type: ignore[union-attr]
    return prod(_shape(node.args[0])[:-1]) * sum(prod(_shape(weight)) for weight in weights)


# A layer in one op, whose products no pattern can see.
RECURRENT = (aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input)
# What a product of matrices counts under, and how many multiply-accumulates it does.
MACS: dict[object, tuple[str, Callable[[fx.Node], int]]] = {
    aten.linear.default: (LINEAR, _contraction),
    aten.mm.default: (LINEAR, _contraction),
    aten.addmm.default: (LINEAR, _added_product),
    aten._grouped_mm.default: (LINEAR, _contraction),
    torch.ops.fxquant.grouped_linear.default: (LINEAR, _contraction),
    aten.mv.default: (LINEAR, _contraction),
    aten.bilinear.default: (LINEAR, lambda node: prod(_shape(node)) * prod(_shape(node.args[2])[1:])),
    **dict.fromkeys(RECURRENT, (LINEAR, _recurrent)),
    aten.matmul.default: (ATTENTION, _contraction),
    aten.einsum.default: (ATTENTION, _einsum),
    aten.inner.default: (ATTENTION, _contraction),
    aten.tensordot.default: (ATTENTION, lambda node: prod(_shape(node)) * prod(_contracted(node))),
    aten.addbmm.default: (ATTENTION, lambda node: prod(_shape(node.args[1])) * _shape(node.args[2])[-1]),
    aten.bmm.default: (ATTENTION, _contraction),
    aten.baddbmm.default: (ATTENTION, _added_product),
    aten.scaled_dot_product_attention.default: (ATTENTION, _attention),
    aten.conv1d.default: (CONVOLUTION, _convolution),
    aten.conv2d.default: (CONVOLUTION, _convolution),
    aten.conv3d.default: (CONVOLUTION, _convolution),
    aten.conv_transpose1d.default: (CONVOLUTION, _transposed_convolution),
    aten.conv_transpose2d.input: (CONVOLUTION, _transposed_convolution),
    aten.conv_transpose3d.input: (CONVOLUTION, _transposed_convolution),
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
