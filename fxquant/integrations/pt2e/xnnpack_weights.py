"""Weights and biases of linears in the form that XNNPACK has for them: a scale for each row, a bias in float."""

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from fxquant.graph import edit
from fxquant.integrations.pt2e.float_moves import LINEAR
from fxquant.kernels import qdq
from fxquant.passes.qdq_nodes import DEQUANTIZE


@dataclass(frozen=True)
class FloatBiases:
    """A bias of integers becomes one of floats, which XNNPACK quantizes by itself. Same numbers, to a rounding."""

    name: ClassVar[str] = "float_biases"
    after: ClassVar[tuple[str, ...]] = ()

    def apply(self, gm: fx.GraphModule) -> int:
        """Return how many biases were rewritten."""
        nodes = [node for node in gm.graph.find_nodes(op="call_function", target=LINEAR) if is_dequantized(node, 2)]
        for node in nodes:
            bias = node.args[2]
            q, scale, zero_point = (edit.get_tensor(gm, each) for each in bias.args[:3])
            floats = qdq.dequantize(q, scale, zero_point, bias.args[3])
            edit.set_argument(node, 2, edit.add_constant(gm, f"{bias.args[0].target}_float", floats, bias))
        edit.sweep(gm)
        return len(nodes)


@dataclass(frozen=True)
class RowScales:
    """A weight with one scale gets it for each row. Same numbers."""

    name: ClassVar[str] = "row_scales"
    after: ClassVar[tuple[str, ...]] = ()

    def apply(self, gm: fx.GraphModule) -> int:
        """Return how many weights were rewritten."""
        weights = {
            node.args[1]: None
            for node in gm.graph.find_nodes(op="call_function", target=LINEAR)
            if is_dequantized(node, 1) and node.args[1].args[3] is None and edit.is_constant(node.args[1].args[0])
        }
        for weight in weights:
            rows = edit.get_tensor(gm, weight.args[0]).shape[0]
            for index in (1, 2):
                value = edit.get_tensor(gm, weight.args[index]).expand(rows).contiguous()
                constant = edit.add_constant(gm, f"{weight.args[index].target}_rows", value, weight)
                edit.set_argument(weight, index, constant)
            edit.set_argument(weight, 3, 0)
            spec = {**edit.marks(weight)["spec"], "granularity": "per-channel", "axis": 0}
            edit.mark(weight, spec=spec)
        edit.sweep(gm)
        return len(weights)


def is_dequantized(node: fx.Node, index: int) -> bool:
    """Say whether an argument of a call is what a dequantize gives."""
    value = node.args[index]
    return isinstance(value, fx.Node) and value.target is DEQUANTIZE
