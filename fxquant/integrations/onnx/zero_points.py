"""Zero points in the type of the integers that they belong to, as ONNX has them, and that type as runtimes want it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from fxquant.graph import edit
from fxquant.graph.edit import TensorInfo
from fxquant.integrations.substitutions import note
from fxquant.ops.shape import MOVES_VALUES
from fxquant.passes.qdq_nodes import DEQUANTIZE, QUANTIZE

# The bounds that QuantizeLinear has for each type.
WHOLE: dict[Any, tuple[int, int]] = {torch.int8: (-128, 127), torch.uint8: (0, 255)}
_UNSIGNED = "int8 becomes uint8, as products of integers on x86 multiply unsigned activations by signed weights"
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


@dataclass(frozen=True)
class UnsignedActivations:
    """Static activations in int8 become uint8, q + 128 with Z + 128. Same numbers.

    ONNX Runtime's products for x86 multiply unsigned activations by signed weights; signed ones it multiplies in float.
    """

    name: ClassVar[str] = "unsigned_activations"
    after: ClassVar[tuple[str, ...]] = ("typed_zero_points",)

    def apply(self, gm: fx.GraphModule) -> int:
        """Return how many activations changed their type."""
        count = 0
        for node in gm.graph.find_nodes(op="call_function", target=QUANTIZE):
            readers = list(_readers(node))
            signed = node.args[6] is torch.int8 and edit.is_constant(node.args[2])
            if signed and all(user.target is DEQUANTIZE for user, _ in readers):
                note(gm, node, "unsigned activation", _UNSIGNED, exact=True)
                _make_unsigned(gm, node, readers)
                count += 1
        edit.sweep(gm)
        return count


def _readers(node: fx.Node) -> Iterator[tuple[fx.Node, list[fx.Node]]]:
    """Yield what reads integers, behind ops that move them, and these ops."""
    for user in node.users:
        if user.target not in MOVES_VALUES:
            yield user, []
            continue
        for reader, moves in _readers(user):
            yield reader, [user, *moves]


def _make_unsigned(gm: fx.GraphModule, node: fx.Node, readers: list[tuple[fx.Node, list[fx.Node]]]) -> None:
    assert isinstance(node.args[2], fx.Node), "checked by the caller"
    shifted = (edit.get_tensor(gm, node.args[2]).short() + 128).to(torch.uint8)
    zero_point = edit.add_constant(gm, f"{node.args[2].target}_unsigned", shifted, node)
    edit.set_argument(node, 2, zero_point)
    for index, bound in zip((4, 5), WHOLE[torch.uint8], strict=True):
        edit.set_argument(node, index, bound)
    edit.set_argument(node, 6, torch.uint8)
    for reader, moves in readers:
        edit.set_argument(reader, 2, zero_point)
        for each in (node, *moves):
            known = edit.info(each)
            if known is not None:
                edit.mark(each, value=TensorInfo(torch.uint8, known.shape, known.dynamic).to_dict())
