"""Biases of linears in float, as runtimes add them."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from fxquant.graph import edit
from fxquant.passes.qdq_nodes import DEQUANTIZE

LINEAR = torch.ops.aten.linear.default


@dataclass(frozen=True)
class FloatBiases:
    """linear(x, w, dequantize(b)) → linear(x, w, b in float32). Same numbers: a bias in integers is a constant."""

    name: ClassVar[str] = "float_biases"
    after: ClassVar[tuple[str, ...]] = ()

    def apply(self, gm: fx.GraphModule) -> int:
        """Return how many biases were dequantized."""
        nodes = [node for node in gm.graph.find_nodes(op="call_function", target=LINEAR) if _in_integers(node.args[2])]
        for node in nodes:
            bias = node.args[2]
            q, scale, zero_point = (edit.get_tensor(gm, each) for each in bias.args[:3])
            value = torch.ops.fxquant.dequantize(q, scale, zero_point, 0)
            edit.set_argument(node, 2, edit.add_constant(gm, f"{bias.args[0].target}_float", value, bias))
        edit.sweep(gm)
        return len(nodes)


def _in_integers(bias: object) -> bool:
    return isinstance(bias, fx.Node) and bias.target is DEQUANTIZE
