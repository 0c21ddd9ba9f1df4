"""Look-ups in quantized tables: rows are taken first and dequantized then; a table stays in integers."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from fxquant.graph import edit
from fxquant.graph.edit import TensorInfo
from fxquant.integrations.substitutions import note
from fxquant.passes.qdq_nodes import DEQUANTIZE

aten = torch.ops.aten
_TEXT = "rows are looked up as integers and multiplied by their scales, as no runtime dequantizes only what it looks up"


@dataclass(frozen=True)
class IntegerLookups:
    """embedding(dequantize(w, s, 0), i) → embedding(w, i)·embedding(s, i). Same numbers.

    Runtimes that meet DequantizeLinear in front of a Gather dequantize the whole table at every call.
    """

    name: ClassVar[str] = "integer_lookups"
    after: ClassVar[tuple[str, ...]] = ()

    def apply(self, gm: fx.GraphModule) -> int:
        """Return how many look-ups were rewritten."""
        count = 0
        for node in list(gm.graph.nodes):
            if node.target is aten.embedding.default and node.args[0].target is DEQUANTIZE:
                count += _rewrite(gm, node)
        edit.sweep(gm)
        return count


def _rewrite(gm: fx.GraphModule, node: fx.Node) -> bool:
    table = node.args[0]
    assert isinstance(table, fx.Node)
    q, scale, zero_point, axis = table.args
    assert isinstance(q, fx.Node) and isinstance(scale, fx.Node) and isinstance(zero_point, fx.Node)
    if axis not in (0, None) or edit.get_tensor(gm, zero_point).any():
        return False
    known = edit.info(node)
    assert known is not None, "convert knows what it quantizes"
    integer = TensorInfo(edit.get_tensor(gm, q).dtype, known.shape, known.dynamic)
    thin = TensorInfo(torch.float32, (*known.shape[:-1], 1), (*known.dynamic[:-1], False))
    step = scale
    if axis is not None:
        step = edit.add_constant(gm, f"{scale.target}_rows", edit.get_tensor(gm, scale)[:, None], node)
    with gm.graph.inserting_before(node):
        rows = edit.call(gm.graph, node.target, (q, *node.args[1:]), like=node, value=integer)
        if axis is not None:
            step = edit.call(gm.graph, node.target, (step, *node.args[1:]), like=node, value=thin)
        number = edit.call(gm.graph, aten.to.dtype, (rows, torch.float32, False, False, None), like=node, value=known)
        new = edit.call(gm.graph, aten.mul.Tensor, (number, step), like=node, value=known)
    note(gm, node, "integer look-up", _TEXT, exact=True)
    edit.replace(node, new)
    return True
