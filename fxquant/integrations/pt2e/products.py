"""Linears and convolutions of a Q/DQ graph: how their operands and results are quantized."""

from typing import Any

import torch
from torch import fx

from fxquant.graph import edit
from fxquant.ops.base import read_constant
from fxquant.passes.qdq_nodes import DEQUANTIZE, DEQUANTIZE_GROUPS, QUANTIZE
from fxquant.spec import QuantSpec

aten = torch.ops.aten
LINEAR = aten.linear.default
CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default, aten.convolution.default)
PRODUCTS = (LINEAR, *CONVOLUTIONS)
RELU = aten.relu.default


def calls_of(gm: fx.GraphModule, *targets: Any) -> list[fx.Node]:
    """Return the calls of some operators, in the order of the graph."""
    return [node for node in gm.graph.nodes if node.op == "call_function" and node.target in targets]


def is_dequantized(node: fx.Node, index: int) -> bool:
    """Say whether an argument of a call is what a dequantize gives, of whatever but groups."""
    value = node.args[index]
    return isinstance(value, fx.Node) and value.target is DEQUANTIZE


def has_integer_weight(product: fx.Node) -> bool:
    """Say whether the weight of a product is stored as integers."""
    weight: Any = product.args[1]
    return weight.target in (DEQUANTIZE, DEQUANTIZE_GROUPS) and read_constant(weight) is not None


def spec_of(node: Any) -> QuantSpec:
    """Return the spec of a quantize or dequantize."""
    return QuantSpec.from_dict(edit.marks(node)["spec"])


def gives_integers(product: fx.Node) -> bool:
    """Say whether a result goes into one quantize with a fixed scale and nowhere else, at most through a ReLU."""
    behind = list(product.users)
    if len(behind) == 1 and behind[0].target is RELU:
        behind = list(behind[0].users)
    return len(behind) == 1 and _is_static(behind[0])


def _is_static(node: fx.Node) -> bool:
    return node.target is QUANTIZE and edit.is_constant(node.args[1]) and node.args[3] is None


def takes_fixed_scales(product: fx.Node) -> bool:
    """Say whether the activations of a product have one scale, found ahead of time."""
    if not is_dequantized(product, 0):
        return False
    spec = spec_of(product.args[0])
    return not spec.dynamic and spec.granularity == "per-tensor"
