"""Zero points in the type of the integers that they belong to, as ONNX has them."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from fxquant.graph import edit
from fxquant.integrations.substitutions import note
from fxquant.passes.qdq_nodes import DEQUANTIZE, QUANTIZE

# The bounds that QuantizeLinear has for each type.
WHOLE: dict[Any, tuple[int, int]] = {torch.int8: (-128, 127), torch.uint8: (0, 255)}
_TEXT = "values below −127 become −128: QuantizeLinear saturates at the ends of int8 only"


@dataclass(frozen=True)
class TypedZeroPoints:
    """Store each constant zero point as the integers that it is subtracted from. Same numbers.

    QuantizeLinear has no bounds of its own, so a quantize to [−127, 127] becomes one to [−128, 127].
    """

    name: ClassVar[str] = "typed_zero_points"
    after: ClassVar[tuple[str, ...]] = ("per_tensor_dynamic",)

    def apply(self, gm: fx.GraphModule) -> int:
        """Return how many zero points got another type."""
        typed: dict[tuple[fx.Node, torch.dtype], fx.Node] = {}
        count = 0
        for node in list(gm.graph.nodes):
            if node.target is QUANTIZE:
                _widen(gm, node)
                count += _retype(gm, node, node.args[6], typed)
            elif node.target is DEQUANTIZE:
                known = edit.info(node.args[0])
                count += known is not None and _retype(gm, node, known.dtype, typed)
        edit.sweep(gm)
        return count


def _retype(
    gm: fx.GraphModule, node: fx.Node, dtype: torch.dtype, typed: dict[tuple[fx.Node, torch.dtype], fx.Node]
) -> bool:
    zero_point = node.args[2]
    assert isinstance(zero_point, fx.Node)
    if not edit.is_constant(zero_point) or edit.get_tensor(gm, zero_point).dtype is dtype:
        return False
    if (zero_point, dtype) not in typed:
        value = edit.get_tensor(gm, zero_point).to(dtype)
        typed[zero_point, dtype] = edit.add_constant(gm, f"{zero_point.target}_typed", value, zero_point)
    edit.set_argument(node, 2, typed[zero_point, dtype])
    return True


def _widen(gm: fx.GraphModule, node: fx.Node) -> None:
    bounds, whole = node.args[4:6], WHOLE.get(node.args[6])
    if whole is not None and bounds != whole:
        for index, bound in zip((4, 5), whole, strict=True):
            edit.set_argument(node, index, bound)
        note(gm, node, "whole range", _TEXT, exact=False)
