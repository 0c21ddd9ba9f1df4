"""Move quantize nodes to where the values are computed, past ops that only hand values on.

quantize(view(x)) = view(quantize(x)), and so for every op of ops/shape.py and for relu, which on integers is a clamp at
the zero point. A quantized op is then directly followed by its quantize, its kernel can requantize, and the views in
between work on integers. Only static per-tensor schemes may move.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx
from torch.fx.node import map_arg

from fxquant.graph import edit
from fxquant.graph.edit import TensorInfo
from fxquant.ops.shape import JOINS_VALUES, MOVES_VALUES, RELU
from fxquant.passes.qdq_nodes import DEQUANTIZE, QUANTIZE
from fxquant.spec import QuantSpec

CLAMP_MIN = torch.ops.aten.clamp_min.default


@dataclass(frozen=True)
class ShareQParams:
    """Hoist quantize nodes over ops that hand values on; merge equal ones; drop those of values already integer."""

    name: ClassVar[str] = "share_qparams"
    after: ClassVar[tuple[str, ...]] = ("convert",)

    def apply(self, gm: fx.GraphModule) -> int:
        """Return how many quantize nodes were moved, merged or dropped."""
        count = 0
        work = [node for node in gm.graph.nodes if _movable(node)]
        while work:
            q = work.pop()
            if not _alive(q):
                continue
            twin = next((user for user in q.args[0].users if user is not q and _same_quantize(gm, user, q)), None)
            if twin is not None:
                first, second = _in_order(twin, q)
                edit.replace(second, first)
                work.append(first)
                count += 1
            elif _same_dequantize(gm, q.args[0], q):
                edit.replace(q, q.args[0].args[0])
                count += 1
            elif _hands_on(q.args[0]) and all(_same_quantize(gm, user, q) for user in q.args[0].users):
                work += _hoist(gm, q)
                count += 1
        edit.sweep(gm)
        return count


def _movable(node: fx.Node) -> bool:
    if node.op != "call_function" or node.target is not QUANTIZE or not edit.is_constant(node.args[1]):
        return False
    spec = edit.marks(node).get("spec")
    return node.args[3] is None and (spec is None or QuantSpec.from_dict(spec).granularity == "per-tensor")


def _alive(q: fx.Node) -> bool:
    return not q._erased and isinstance(q.args[0], fx.Node)


def _hands_on(node: Any) -> bool:
    if "member" in edit.marks(node):
        return False  # a kernel will compute it
    if node.op != "call_function" or not (node.target in MOVES_VALUES | JOINS_VALUES or node.target is RELU):
        return False
    first = node.args[0]
    # cat also converts: what it reads may be integers, which are not to be quantized.
    known = [edit.info(each) for each in (first if isinstance(first, list | tuple) else (first,))]
    return all(each is not None and each.dtype is torch.float32 for each in known)


def _same_constant(gm: fx.GraphModule, left: Any, right: Any) -> bool:
    if left is right:
        return True
    both = edit.is_constant(left) and edit.is_constant(right)
    return both and torch.equal(edit.get_tensor(gm, left), edit.get_tensor(gm, right))


def _same_quantize(gm: fx.GraphModule, node: fx.Node, q: fx.Node) -> bool:
    if node.target is not QUANTIZE or node.args[3:] != q.args[3:]:
        return False
    return all(_same_constant(gm, node.args[index], q.args[index]) for index in (1, 2))


def _same_dequantize(gm: fx.GraphModule, node: fx.Node, q: fx.Node) -> bool:
    """Say whether `node` dequantizes with the parameters of `q` from its very dtype."""
    if node.target is not DEQUANTIZE or node.args[3] != q.args[3]:
        return False
    known = edit.info(node.args[0])  # type: ignore[arg-type]
    same_dtype = known is not None and known.dtype is q.args[6]
    return same_dtype and all(_same_constant(gm, node.args[index], q.args[index]) for index in (1, 2))


def _in_order(left: fx.Node, right: fx.Node) -> tuple[fx.Node, fx.Node]:
    return (left, right) if left < right else (right, left)


def _hoist(gm: fx.GraphModule, q: fx.Node) -> list[fx.Node]:
    """Put `q` in front of the op it reads, and return the new quantize nodes."""
    op: fx.Node = q.args[0]  # type: ignore[assignment]
    moved: dict[fx.Node, fx.Node] = {}

    def quantized(source: fx.Node) -> fx.Node:
        if source not in moved:
            known = edit.info(source)
            value = TensorInfo(q.args[6], known.shape, known.dynamic) if known else None  # type: ignore[arg-type]
            with gm.graph.inserting_before(op):
                qparams = _bring_forward(gm, q, op)
                moved[source] = edit.call(gm.graph, QUANTIZE, (source, *qparams, *q.args[3:]), like=source, value=value)
            edit.mark(moved[source], spec=edit.marks(q).get("spec"))
        return moved[source]

    first = map_arg(op.args[0], quantized)
    known = edit.info(q)
    args = (first, *op.args[1:])
    if op.target is RELU:
        args = (first, int(edit.get_tensor(gm, q.args[2])))  # type: ignore[arg-type]
    with gm.graph.inserting_before(op):
        target = CLAMP_MIN if op.target is RELU else op.target
        integer = edit.call(gm.graph, target, args, like=op, value=known, **({} if op.target is RELU else op.kwargs))
    edit.mark(integer, reason=edit.marks(op).get("reason"))
    for user in list(op.users):
        edit.replace(user, integer)
    gm.graph.erase_node(op)
    return list(moved.values())


def _bring_forward(gm: fx.GraphModule, q: fx.Node, place: fx.Node) -> tuple[fx.Node, fx.Node]:
    """Return nodes of the scale and zero point that come before `place`."""
    nodes = []
    for each in (q.args[1], q.args[2]):
        assert isinstance(each, fx.Node)
        if not each < place:
            place.prepend(each)
        nodes.append(each)
    return nodes[0], nodes[1]
