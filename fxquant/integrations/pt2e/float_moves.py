"""Integers that are handed on become floats that are handed on, and are quantized where they are read."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from fxquant.graph import edit
from fxquant.graph.edit import TensorInfo
from fxquant.integrations.pt2e.products import PRODUCTS
from fxquant.passes.qdq_nodes import DEQUANTIZE, QUANTIZE, insert_quantize
from fxquant.passes.share_qparams import CLAMP_MIN
from fxquant.spec import QuantSpec

aten = torch.ops.aten


@dataclass(frozen=True)
class FloatMoves:
    """What hands on integers hands on floats, and is quantized behind: op(quantize(x)) = quantize(op(x)). Same numbers.

    The result of a product goes on being quantized right behind it, where XNNPACK wants it.
    """

    name: ClassVar[str] = "float_moves"
    after: ClassVar[tuple[str, ...]] = ()

    def apply(self, gm: fx.GraphModule) -> int:
        """Return how many dequantize nodes read integers that were handed on."""
        done: dict[fx.Node, fx.Node] = {}
        count = 0
        for node in gm.graph.find_nodes(op="call_function", target=DEQUANTIZE):
            source = node.args[0]
            if _is_handed_on(source):
                with gm.graph.inserting_before(source):
                    floats = _floated(source, done, node)
                spec = QuantSpec.from_dict(edit.marks(node)["spec"])
                new = insert_quantize(floats, node.args[1], node.args[2], spec, None, floats)
                edit.replace(node, new)
                count += 1
        edit.sweep(gm)
        return count


def _is_handed_on(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target is not QUANTIZE


def _floated(node: fx.Node, done: dict[fx.Node, fx.Node], reader: fx.Node) -> fx.Node:
    """Return the floats that integers stand for, or those they were made from: a quantize behind does the same."""
    if node in done:
        return done[node]
    known = edit.info(node)
    assert known is not None, "convert describes what it makes"
    value = TensorInfo(torch.float32, known.shape, known.dynamic)
    if node.target is QUANTIZE:
        found: Any = node.args[0]
        if found.target in PRODUCTS:
            with node.graph.inserting_after(node):
                found = edit.call(node.graph, DEQUANTIZE, (node, *reader.args[1:]), like=node, value=value)
            edit.mark(found, spec=edit.marks(reader)["spec"])
    else:
        args = fx.map_arg(node.args, lambda each: _floated(each, done, reader))
        target = aten.relu.default if node.target is CLAMP_MIN else node.target
        args = args[:1] if node.target is CLAMP_MIN else args
        with node.graph.inserting_before(node):
            found = edit.call(node.graph, target, args, like=node, value=value, **node.kwargs)
    done[node] = found
    return done[node]
