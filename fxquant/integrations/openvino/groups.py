"""Activations that OpenVINO quantizes by itself at run time: int8, a scale for each group of a token's values."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from fxquant.graph import edit
from fxquant.integrations.substitutions import note
from fxquant.kernels.library import define
from fxquant.passes.qdq_nodes import CHOOSE_QPARAMS, DEQUANTIZE, DEQUANTIZE_GROUPS, QUANTIZE
from fxquant.verification.rounding import STOCHASTIC, shifted

LINEAR = torch.ops.aten.linear.default
GROUP = 64  # half of the error of 128, and a tenth faster than 32
NAME = "dynamic in groups"


def round_groups(x: Tensor, group_size: int) -> Tensor:
    """Return x rounded to int8 and back, S = max|x|/127 of each `group_size` values along the last axis.

    A last group may be shorter. Fewer values than a group has stay as they are, as in OpenVINO.
    """
    if x.shape[-1] < group_size:
        return x.clone()
    scale = _scales(x, group_size)
    return torch.round(x / scale) * scale


def _scales(x: Tensor, group_size: int) -> Tensor:
    """Return the scale of each value's group, in the shape of `x`; 1 for a group of zeros."""
    size = x.shape[-1]
    padded = torch.nn.functional.pad(x, (0, -size % group_size))
    scale = padded.reshape(*x.shape[:-1], -1, group_size).abs().amax(-1) / 127
    return torch.where(scale == 0, 1.0, scale).repeat_interleave(group_size, -1)[..., :size]


define("round_groups(Tensor x, int group_size) -> Tensor", round_groups, lambda x, group_size: torch.empty_like(x))
ROUND_GROUPS = torch.ops.fxquant.round_groups.default


def _by_chance(args: tuple[Any, ...], generator: torch.Generator) -> Tensor:
    x, size = args
    if x.shape[-1] < size:
        return round_groups(x, size)
    scale = _scales(x, size)
    found: Tensor = (torch.round(shifted(x, scale, generator) / scale)).clamp(-127, 127) * scale
    return found


STOCHASTIC[ROUND_GROUPS] = _by_chance


@dataclass(frozen=True)
class DynamicInGroups:
    """linear(dequantize(quantize(x at run time)), w) → linear(round_groups(x), w), w in integers. Other numbers.

    The runtime does it for all linears with weights in integers and activations in float or for none: where one is
    dynamic, those of weights alone become so, too.
    """

    name: ClassVar[str] = "dynamic_in_groups"
    after: ClassVar[tuple[str, ...]] = ()

    def apply(self, gm: fx.GraphModule) -> int:
        """Return how many linears read rounded groups now."""
        linears = [node for node in gm.graph.nodes if node.target is LINEAR and _in_integers(node.args[1])]
        if not any(_source(node) is not None for node in linears):
            return 0
        chosen = [node for node in linears if _source(node) is not None or not _quantized(node.args[0])]
        rounded: dict[fx.Node, fx.Node] = {}
        for node in chosen:
            _rewrite(gm, node, rounded)
        edit.sweep(gm)
        return len(chosen)


def _in_integers(weight: Any) -> bool:
    """Say whether the runtime rounds what is multiplied by a weight: groups of a weight may be no smaller."""
    if not isinstance(weight, fx.Node) or weight.target not in (DEQUANTIZE, DEQUANTIZE_GROUPS):
        return False
    known = edit.info(weight.args[0]) if isinstance(weight.args[0], fx.Node) else None
    if known is not None and known.dtype.is_floating_point:
        return False
    grouped: Any = weight.args[3] if weight.target is DEQUANTIZE_GROUPS else 0
    return weight.target is DEQUANTIZE or grouped >= GROUP


def _quantized(x: Any) -> bool:
    return isinstance(x, fx.Node) and x.target is DEQUANTIZE


def _source(linear: fx.Node) -> fx.Node | None:
    """Return what a linear reads, before it is quantized at run time; None where it is not."""
    x: Any = linear.args[0]
    if not _quantized(x) or x.args[0].target is not QUANTIZE:
        return None
    scale = x.args[0].args[1]
    chosen = scale.args[0] if scale.op == "call_function" and scale.args else None
    found: fx.Node | None = x.args[0].args[0]
    return found if isinstance(chosen, fx.Node) and chosen.target is CHOOSE_QPARAMS else None


def _rewrite(gm: fx.GraphModule, linear: fx.Node, rounded: dict[fx.Node, fx.Node]) -> None:
    dynamic = _source(linear)
    x = dynamic if dynamic is not None else linear.args[0]
    assert isinstance(x, fx.Node), "the input of a linear is a value of the graph"
    if x not in rounded:
        with gm.graph.inserting_after(x):
            rounded[x] = edit.call(gm.graph, ROUND_GROUPS, (x, GROUP), like=linear, value=edit.info(x))
    what = "activations quantized" if dynamic is not None else "weights alone: activations become quantized"
    text = f"{what} at run time to int8, symmetric, in groups of {GROUP}, as OpenVINO does it on a CPU with VNNI"
    note(gm, linear, NAME, text, exact=False)
    edit.set_argument(linear, 0, rounded[x])


def without_rounding(gm: fx.GraphModule) -> int:
    """Remove the rounding of groups, which the runtime does by itself, and return how often it was there."""
    nodes = gm.graph.find_nodes(op="call_function", target=ROUND_GROUPS)
    for node in nodes:
        edit.replace(node, node.args[0])
    edit.sweep(gm)
    return len(nodes)
