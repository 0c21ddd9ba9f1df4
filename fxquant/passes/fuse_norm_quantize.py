"""A norm and the quantization of what it returns → one kernel, which reads each row once.

A norm before a linear, as decoders have it, then leaves integers alone. One whose result is also carried on, as
encoders have it, leaves both.
"""

import operator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from fxquant.graph import edit
from fxquant.passes.claims import hand_over

aten, ops = torch.ops.aten, torch.ops.fxquant
BY_ROW, STATIC = ops.quantize_rows.default, ops.quantize_static.default
FUSED = {BY_ROW: ops.norm_quantize_rows.default, STATIC: ops.norm_quantize_static.default}
RESULTS = {BY_ROW: 3, STATIC: 1}  # how many tensors a quantization returns


@dataclass(frozen=True)
class FuseNormQuantize:
    """Join layer norms and root-mean-square norms along the last axis with a quantization that reads them."""

    name: ClassVar[str] = "fuse_norm_quantize"
    after: ClassVar[tuple[str, ...]] = ("lower", "sink_quantize", "unpad")

    def apply(self, gm: fx.GraphModule) -> int:
        """Return how many norms were joined; of several quantizations of one norm the first is."""
        count = 0
        for node in list(gm.graph.nodes):
            norm = node.args[0] if node.target in FUSED else None
            words = _norm(norm) if isinstance(norm, fx.Node) else None
            if words is not None:
                _fuse(gm, norm, node, words)  # type: ignore[arg-type]
                count += 1
        if count:
            edit.sort(gm)
        return count


def _norm(node: fx.Node) -> tuple[Any, ...] | None:
    """Return operand, weight, bias, kind and ε of a norm that the kernel computes; None for any other node."""
    if node.target is aten.layer_norm.default:
        x, shape, weight, bias, eps = node.args[:5]
        words = (x, weight, bias, "layer", eps)
    elif node.target is aten.rms_norm.default:
        x, shape, weight, eps = node.args
        words = (x, weight, None, "rms", torch.finfo(torch.float32).eps if eps is None else eps)
    else:
        return None
    constants = [each for each in words[1:3] if each is not None]
    known = edit.info(node)
    plain = known is not None and known.dtype is torch.float32 and all(map(edit.is_constant, constants))
    return words if plain and isinstance(shape, list | tuple) and len(shape) == 1 else None


def _fuse(gm: fx.GraphModule, norm: fx.Node, quantize: fx.Node, words: tuple[Any, ...]) -> None:
    """Put one kernel in the place of a norm and a quantization; who else reads the norm reads its last result."""
    keep = len(norm.users) > 1
    quantization: Any = quantize.target
    target, results = FUSED[quantization], RESULTS[quantization]
    with gm.graph.inserting_before(quantize):
        kernel = edit.call(gm.graph, target, (*words, *quantize.args[1:], keep), like=norm)
        if target is FUSED[BY_ROW]:
            for part in list(quantize.users):
                part.update_arg(0, kernel)
        else:
            quantize.replace_all_uses_with(_item(kernel, 0, quantize))
        kept = _item(kernel, results, norm) if keep else None
    gm.graph.erase_node(quantize)
    hand_over((norm,), kernel)
    if kept is not None:
        norm.replace_all_uses_with(kept)
    gm.graph.erase_node(norm)


def _item(kernel: fx.Node, index: int, like: fx.Node) -> fx.Node:
    item = edit.call(kernel.graph, operator.getitem, (kernel, index), like=like, value=edit.info(like))
    item.meta |= {key: value for key, value in like.meta.items() if key == "val"}
    edit.mark(item, spec=edit.marks(like).get("spec"))
    return item
