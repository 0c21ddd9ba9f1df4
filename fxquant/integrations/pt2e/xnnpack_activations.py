"""Activations of linears as XNNPACK has them: int8, with scales of tokens found at run time, or with a fixed scale."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from fxquant.graph import edit
from fxquant.graph.edit import TensorInfo
from fxquant.integrations.pt2e.products import (
    LINEAR,
    calls_of,
    gives_integers,
    has_integer_weight,
    is_dequantized,
    spec_of,
    takes_fixed_scales,
)
from fxquant.integrations.substitutions import note
from fxquant.passes.qdq_nodes import DEQUANTIZE, DEQUANTIZE_GROUPS, QUANTIZE, insert_choice, insert_quantize
from fxquant.spec import QuantSpec

TOKENS = QuantSpec(dtype="int8", granularity="per-token", dynamic=True)


@dataclass(frozen=True)
class TokenScales:
    """Activations of linears are quantized at run time, for each token, where XNNPACK does not take them as they are.

    Those with a scale found for the whole tensor; those with a fixed scale whose linear gives floats; those in float,
    before weights of integers. Other numbers.
    """

    name: ClassVar[str] = "token_scales"
    after: ClassVar[tuple[str, ...]] = ("float_moves",)

    def apply(self, gm: fx.GraphModule) -> int:
        """Return how many linears were rewritten."""
        made: dict[fx.Node, fx.Node] = {}
        count = 0
        # from the last on: one that takes other activations may leave the result of one before it in float
        for node in reversed(calls_of(gm, LINEAR)):
            x: Any = node.args[0]
            why = _unfit(node) if has_integer_weight(node) else None
            if why is None:
                continue
            if x not in made:
                made[x] = _by_token(x)
            edit.set_argument(node, 0, made[x])
            _note(gm, node, x, why)
            _drop(x)
            count += 1
        edit.sweep(gm)
        return count


def _unfit(linear: fx.Node) -> str | None:
    """Return why XNNPACK does not take the activations of a linear as they are, None where it does."""
    if not is_dequantized(linear, 0):
        return "XNNPACK multiplies integers with integers"
    spec = spec_of(linear.args[0])
    if spec.dynamic:
        as_it_is = (spec.dtype, spec.granularity, spec.symmetric) == ("int8", "per-token", False)
        return None if as_it_is else "at run time XNNPACK finds a scale and a zero point for each token, of int8"
    if linear.args[1].target is DEQUANTIZE_GROUPS:  # type: ignore[union-attr]
        return "XNNPACK has weights with scales for groups under scales that are found at run time alone"
    if takes_fixed_scales(linear) and gives_integers(linear):
        return None
    return "with fixed scales XNNPACK's linears give integers, and this one's result is read as floats"


def _note(gm: fx.GraphModule, linear: fx.Node, x: fx.Node, why: str) -> None:
    if x.target is not DEQUANTIZE:
        note(gm, linear, "int8 activations", f"float32 becomes int8 per-token: {why}", exact=False)
        return
    spec = spec_of(x)
    exact = spec.dynamic and (spec.granularity, spec.symmetric) == ("per-token", False)
    name = "signed activations" if exact else "per-token dynamic"
    note(gm, linear, name, f"{spec.dtype} {spec.granularity} becomes int8 per-token: {why}", exact=exact)


def _by_token(x: fx.Node) -> fx.Node:
    """Return `x`, or what it dequantizes, quantized for each token."""
    q: Any = x.args[0] if x.target is DEQUANTIZE else x
    source = q.args[0] if q.target is QUANTIZE else x
    choice = insert_choice(source, TOKENS, x.next)
    return insert_quantize(source, *choice, TOKENS, None, choice[1])


def _drop(x: fx.Node) -> None:
    """Erase a dequantize that nothing reads any more, and its quantize."""
    while x.target in (DEQUANTIZE, QUANTIZE) and not x.users:
        source: Any = x.args[0]
        x.graph.erase_node(x)
        x = source


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
