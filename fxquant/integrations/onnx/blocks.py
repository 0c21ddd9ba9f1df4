"""Blocks of weights that divide what is summed, as some runtimes want them."""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, fx

from fxquant.graph import edit
from fxquant.integrations.onnx.ops import DEQUANTIZE_BLOCKS


@dataclass(frozen=True)
class WholeBlocks:
    """A scale for each block of K values, of which the last is short → one for each smaller block. Same numbers.

    The new size is the largest that divides both K and the old one, and scales are repeated.
    """

    name: ClassVar[str] = "whole_blocks"
    after: ClassVar[tuple[str, ...]] = ("linears_to_products",)

    def apply(self, gm: fx.GraphModule) -> int:
        """Return how many weights got smaller blocks."""
        nodes = gm.graph.find_nodes(op="call_function", target=DEQUANTIZE_BLOCKS)
        return sum(_divide(gm, node) for node in nodes if node.args[4])


def _divide(gm: fx.GraphModule, node: fx.Node) -> bool:
    q, scale, zero_point, axis, size, _ = node.args
    assert isinstance(axis, int) and isinstance(size, int), "linears_to_products writes them"
    summed = edit.get_tensor(gm, q).shape[axis]  # type: ignore[arg-type]
    smaller = math.gcd(summed, size)
    if smaller == size:
        return False
    for index, constant in ((1, scale), (2, zero_point)):
        assert isinstance(constant, fx.Node), "linears_to_products writes them"
        tensor = edit.get_tensor(gm, constant)
        if tensor.ndim:
            whole = _repeated(tensor, axis, size // smaller, summed // smaller)
            edit.set_argument(node, index, edit.add_constant(gm, f"{constant.target}_whole", whole, node))
    edit.set_argument(node, 4, smaller)
    return True


def _repeated(tensor: Tensor, axis: int, times: int, count: int) -> Tensor:
    return tensor.repeat_interleave(times, axis).narrow(axis, 0, count).contiguous()
