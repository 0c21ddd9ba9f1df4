"""Activations of linears as XNNPACK has them: int8, with scales of tokens found at run time, or with a fixed scale."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from fxquant.graph import edit
from fxquant.graph.edit import TensorInfo
from fxquant.integrations.pt2e.float_moves import LINEAR
from fxquant.integrations.pt2e.xnnpack_weights import is_dequantized
from fxquant.integrations.substitutions import note
from fxquant.passes.qdq_nodes import DEQUANTIZE, QUANTIZE, insert_choice, insert_quantize
from fxquant.spec import QuantSpec

RELU = torch.ops.aten.relu.default
TOKENS = QuantSpec(dtype="int8", granularity="per-token", dynamic=True)


@dataclass(frozen=True)
class TokenScales:
    """Activations of linears are quantized at run time, for each token, where XNNPACK does not take them as they are.

    Those with a scale found for the whole tensor; those with a fixed scale whose linear gives floats. Other numbers.
    """

    name: ClassVar[str] = "token_scales"
    after: ClassVar[tuple[str, ...]] = ("float_moves",)

    def apply(self, gm: fx.GraphModule) -> int:
        """Return how many linears were rewritten."""
        made: dict[fx.Node, fx.Node] = {}
        count = 0
        for node in gm.graph.find_nodes(op="call_function", target=LINEAR):
            x = node.args[0]
            why = _unfit(node) if is_dequantized(node, 0) and _is_weight(node.args[1]) else None
            if why is None:
                continue
            if x not in made:
                made[x] = _by_token(x)
            edit.set_argument(node, 0, made[x])
            spec = QuantSpec.from_dict(edit.marks(x)["spec"])
            exact = spec.dynamic and (spec.granularity, spec.symmetric) == ("per-token", False)
            name = "signed activations" if exact else "per-token dynamic"
            note(gm, node, name, f"{spec.dtype} {spec.granularity} becomes int8 per-token: {why}", exact=exact)
            count += 1
        edit.sweep(gm)
        return count


def _is_weight(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.target is DEQUANTIZE and edit.is_constant(node.args[0])


def _unfit(linear: fx.Node) -> str | None:
    """Return why XNNPACK does not take the activations of a linear as they are, None where it does."""
    spec = QuantSpec.from_dict(edit.marks(linear.args[0])["spec"])  # type: ignore[arg-type]
    if spec.dynamic:
        as_it_is = (spec.dtype, spec.granularity, spec.symmetric) == ("int8", "per-token", False)
        return None if as_it_is else "at run time XNNPACK finds a scale and a zero point for each token, of int8"
    behind = list(linear.users)
    if len(behind) == 1 and behind[0].target is RELU:
        behind = list(behind[0].users)
    if spec.granularity == "per-tensor" and len(behind) == 1 and _is_static_quantize(behind[0]):
        return None
    return "with fixed scales XNNPACK's linears give integers, and this one's result is read as floats"


def _is_static_quantize(node: fx.Node) -> bool:
    return node.target is QUANTIZE and edit.is_constant(node.args[1]) and node.args[3] is None


def _by_token(x: fx.Node) -> fx.Node:
    """Return what `x` dequantizes, quantized for each token."""
    q: Any = x.args[0]
    source = q.args[0] if q.target is QUANTIZE else x
    choice = insert_choice(source, TOKENS, x.next)
    return insert_quantize(source, *choice, TOKENS, None, choice[1])


@dataclass(frozen=True)
class SignedIntegers:
    """uint8 becomes int8, with 128 less in integers and zero points. Same numbers."""

    name: ClassVar[str] = "signed_integers"
    after: ClassVar[tuple[str, ...]] = ("float_moves", "token_scales")

    def apply(self, gm: fx.GraphModule) -> int:
        """Return how many quantize nodes were rewritten."""
        shifted: dict[fx.Node, fx.Node] = {}
        count = 0
        for node in gm.graph.find_nodes(op="call_function", target=QUANTIZE):
            pairs = all(user.target is DEQUANTIZE for user in node.users)
            if node.args[6] is not torch.uint8 or not edit.is_constant(node.args[2]) or not pairs:
                continue
            for user in (node, *node.users):
                edit.set_argument(user, 2, _less(gm, user.args[2], shifted))
                edit.mark(user, spec={**edit.marks(user)["spec"], "dtype": "int8"})
            for index, value in ((4, node.args[4] - 128), (5, node.args[5] - 128), (6, torch.int8)):
                edit.set_argument(node, index, value)
            known = edit.info(node)
            assert known is not None, "convert describes what it makes"
            node.meta.pop("val", None)
            edit.mark(node, value=TensorInfo(torch.int8, known.shape, known.dynamic).to_dict())
            count += 1
        edit.sweep(gm)
        return count


def _less(gm: fx.GraphModule, zero_point: Any, shifted: dict[fx.Node, fx.Node]) -> fx.Node:
    if zero_point not in shifted:
        value = edit.get_tensor(gm, zero_point) - 128
        shifted[zero_point] = edit.add_constant(gm, f"{zero_point.target}_signed", value, zero_point)
    return shifted[zero_point]
