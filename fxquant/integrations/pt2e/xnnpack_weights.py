"""Weights and biases in the forms that XNNPACK has for them: a scale for each row or group, a bias in float."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from fxquant.graph import edit
from fxquant.integrations.pt2e.products import (
    CONVOLUTIONS,
    LINEAR,
    PRODUCTS,
    calls_of,
    gives_integers,
    has_integer_weight,
    is_dequantized,
    spec_of,
    takes_fixed_scales,
)
from fxquant.integrations.substitutions import note
from fxquant.kernels import qdq
from fxquant.passes.qdq_nodes import DEQUANTIZE_GROUPS


@dataclass(frozen=True)
class FloatBiases:
    """A bias of integers becomes one of floats, which XNNPACK quantizes by itself. Same numbers, to a rounding."""

    name: ClassVar[str] = "float_biases"
    after: ClassVar[tuple[str, ...]] = ()

    def apply(self, gm: fx.GraphModule) -> int:
        """Return how many biases were rewritten."""
        nodes = [node for node in calls_of(gm, *PRODUCTS) if is_dequantized(node, 2)]
        for node in nodes:
            bias: Any = node.args[2]
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
        weights: dict[Any, None] = {
            node.args[1]: None
            for node in calls_of(gm, LINEAR)
            if is_dequantized(node, 1) and _has_one_scale(node.args[1])
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


def _has_one_scale(weight: Any) -> bool:
    return weight.args[3] is None and edit.is_constant(weight.args[0])


@dataclass(frozen=True)
class GroupScales:
    """Scales of groups are rounded to bfloat16, as XNNPACK holds them. Other numbers where they have more digits."""

    name: ClassVar[str] = "group_scales"
    after: ClassVar[tuple[str, ...]] = ()

    def apply(self, gm: fx.GraphModule) -> int:
        """Return how many weights got other scales."""
        count = 0
        for weight in dict.fromkeys(node.args[1] for node in calls_of(gm, LINEAR)):
            if not isinstance(weight, fx.Node) or weight.target is not DEQUANTIZE_GROUPS:
                continue
            edit.mark(weight, spec={**edit.marks(weight)["spec"], "range": "full"})  # its integers are all of 4 bits
            scale: Any = weight.args[1]
            exact = edit.get_tensor(gm, scale)
            rounded = exact.bfloat16().float()
            if not torch.equal(rounded, exact):
                edit.set_argument(weight, 1, edit.add_constant(gm, f"{scale.target}_bfloat16", rounded, weight))
                note(gm, weight, "bfloat16 scales", "XNNPACK holds scales of groups in bfloat16", exact=False)
                count += 1
        edit.sweep(gm)
        return count


@dataclass(frozen=True)
class FloatFilters:
    """Filters of integers become floats where XNNPACK has no integer convolution: not with fixed scales in and out.

    Dequantizing them at each call would take longer than the convolution. Same numbers; activations with scales found
    at run time, which it has no form for there, stay in float.
    """

    name: ClassVar[str] = "float_filters"
    after: ClassVar[tuple[str, ...]] = ("token_scales",)

    def apply(self, gm: fx.GraphModule) -> int:
        """Return how many filters were rewritten."""
        nodes = [node for node in calls_of(gm, *CONVOLUTIONS) if has_integer_weight(node) and not _is_integer(node)]
        for node in nodes:
            weight: Any = node.args[1]
            q, scale, zero_point = (edit.get_tensor(gm, each) for each in weight.args[:3])
            floats = qdq.dequantize(q, scale, zero_point, weight.args[3])
            edit.set_argument(node, 1, edit.add_constant(gm, f"{weight.args[0].target}_float", floats, weight))
            dynamic = is_dequantized(node, 0) and spec_of(node.args[0]).dynamic
            if dynamic:
                edit.set_argument(node, 0, node.args[0].args[0].args[0])  # type: ignore[union-attr]
            text = "XNNPACK has integer convolutions for scales that are fixed, of what goes in and of what comes out"
            note(gm, node, "float convolution", text, exact=not dynamic)
        edit.sweep(gm)
        return len(nodes)


def _is_integer(convolution: fx.Node) -> bool:
    spec = spec_of(convolution.args[1])
    fits = (spec.dtype, spec.symmetric) == ("int8", True) and spec.axis in (0, None)
    return fits and takes_fixed_scales(convolution) and gives_integers(convolution)
