"""Scaled dot-product attention → `fxquant::x86_attention`, which reads and writes heads where linears leave them.

ATen's attention takes [B, H, S, D], so around it stand a view and a transpose for each operand and for the result. The
kernel takes [B, S, H·D]: they go. Where query, key and value are columns of one tensor, the kernel reads that. Keys and
values that the graph repeats for groups of queries are read once. Operands that are made as [B, H, S, D], as rotary
embeddings make them, are read by their strides.

softmax(q·kᵀ·scale + mask)·v is computed with other roundings than torch's (docs/kernels.md). A query from which −∞
hides every key gets zeros, as from ATen's op; where the softmax is spelled out it got NaN.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from fxquant.graph import edit
from fxquant.graph.edit import TensorInfo
from fxquant.kernels.x86 import native
from fxquant.passes.attention_operands import Operand, flattens, joined, operand, swaps_positions_and_heads, unrepeated
from fxquant.passes.attention_spelling import Spelled, spelled
from fxquant.passes.claims import hand_over

aten = torch.ops.aten
ATTENTION = torch.ops.fxquant.x86_attention.default
MASKS = (torch.bool, torch.float32)


@dataclass(frozen=True)
class FuseAttention:
    """Replace attention in float32 by the kernel, and drop the views and transposes around it.

    What cannot be replaced keeps its reason in `fallback`. Where the C++ kernels cannot be had, all stays as it is.
    """

    name: ClassVar[str] = "fuse_attention"
    after: ClassVar[tuple[str, ...]] = ("lower", "merge_linears", "sink_quantize")

    def apply(self, gm: fx.GraphModule) -> int:
        """Return how many attentions became the kernel."""
        sums: dict[tuple[fx.Node, ...], fx.Node] = {}
        count = 0
        for attention in spelled(gm) if native.available() else ():
            heads = _read(attention)
            if isinstance(heads, str):
                edit.mark(attention.result, fallback=f"kernel x86_attention: {heads}")
                continue
            _replace(attention, heads, sums)
            count += 1
        edit.sweep(gm)
        return count


@dataclass(frozen=True)
class _Heads:
    """An attention that the kernel can compute; `features` are those of one head."""

    query: Operand
    key: Operand
    value: Operand
    heads: int
    kv_heads: int
    features: int


def _read(attention: Spelled) -> _Heads | str:
    """Return the operands of an attention as the kernel takes them, or why it cannot."""
    q, k, v = (edit.info(each) for each in (attention.query, attention.key, attention.value))
    if q is None or k is None or v is None or any(not _four(each) for each in (q, k, v)):
        return "query, key and value have to be float32 [batch, heads, positions, features], heads and features fixed"
    refused = _refused(q, k, v) or _refused_mask(attention.masks)
    if refused or attention.dropout != 0:
        return refused or "it drops out weights"
    key, value = unrepeated(attention.key, attention.value)
    heads, kv_heads = q.shape[1], _heads_of(key)
    if heads % kv_heads or not (attention.grouped or k.shape[1] in (1, heads)):
        return f"{heads} query heads cannot share {k.shape[1]} key heads evenly"
    return _Heads(operand(attention.query), operand(key), operand(value), heads, kv_heads, q.shape[3])


def _four(known: TensorInfo) -> bool:
    return known.dtype is torch.float32 and len(known.shape) == 4 and not (known.dynamic[1] or known.dynamic[3])


def _refused(q: TensorInfo, k: TensorInfo, v: TensorInfo) -> str | None:
    if not q.shape[3] == k.shape[3] == v.shape[3]:
        return f"query and value have {q.shape[3]} and {v.shape[3]} features a head; the kernel takes equal ones"
    if k.shape[1] != v.shape[1]:
        return f"there are {k.shape[1]} heads of keys and {v.shape[1]} of values"
    if len({(each.shape[0], each.dynamic[0]) for each in (q, k, v)}) > 1:
        return "query, key and value have different batches"
    return None


def _refused_mask(masks: tuple[fx.Node, ...]) -> str | None:
    for known in map(edit.info, masks):
        if known is None or known.dtype not in MASKS or len(known.shape) > 4:
            return "the mask has to be boolean or float32, of at most 4 dimensions"
    return None


def _heads_of(node: Any) -> int:
    known = edit.info(node)
    assert known is not None, "the caller has seen its shape"
    return known.shape[1]


def _replace(attention: Spelled, read: _Heads, sums: dict[tuple[fx.Node, ...], fx.Node]) -> None:
    node, graph = attention.result, attention.result.graph
    if len(attention.masks) > 1 and attention.masks not in sums:
        sums[attention.masks] = _sum(attention)
    mask = sums[attention.masks] if len(attention.masks) > 1 else next(iter(attention.masks), None)
    with graph.inserting_before(node):
        rows = joined(read.query, read.key, read.value) or tuple(map(_rows, (read.query, read.key, read.value)))
        scale = read.features**-0.5 if attention.scale is None else attention.scale
        tail = (_mask(node, mask), None, read.heads, read.kv_heads, scale, attention.causal)
        new = edit.call(graph, ATTENTION, (*rows, *tail), like=node, value=_flat(node))
    hand_over(attention.nodes, new)
    _hand_on(node, new, read)
    graph.erase_node(node)


def _sum(attention: Spelled) -> fx.Node:
    """Insert the sum of the masks of an attention, which those that follow may share."""
    node, (total, *others) = attention.result, attention.masks
    with node.graph.inserting_before(node):
        for mask in others:
            known = [each for each in (edit.info(total), edit.info(mask)) if each is not None]
            total = edit.call(node.graph, aten.add.Tensor, (total, mask), like=node, value=_broadcast(*known), alpha=1)
    return total


def _broadcast(a: TensorInfo, b: TensorInfo) -> TensorInfo:
    """Return what is known of a sum."""
    rank = max(len(a.shape), len(b.shape))
    sizes = [
        max((1, False), *((each.shape[axis], each.dynamic[axis]) for each in (a, b) if -axis <= len(each.shape)))
        for axis in range(-rank, 0)
    ]
    return TensorInfo(a.dtype, tuple(size for size, _ in sizes), tuple(dynamic for _, dynamic in sizes))


def _rows(operand: Operand) -> fx.Node:
    """Return an operand as [B, S, heads·D] or [B, S, heads, D], transposing where the graph has no such value."""
    if operand.rows is not None:
        return operand.rows
    node = operand.node
    rows = edit.call(node.graph, aten.transpose.int, (node, 1, 2), like=node, value=_swapped(edit.info(node)))
    if isinstance(node.meta.get("val"), torch.Tensor):
        rows.meta["val"] = node.meta["val"].transpose(1, 2)
    return rows


def _mask(node: fx.Node, mask: Any) -> Any:
    """Return a mask with four dimensions; what comes with two is no padding mask here."""
    known = edit.info(mask) if isinstance(mask, fx.Node) else None
    for _ in range(4 - len(known.shape) if known else 0):
        known = TensorInfo(known.dtype, (1, *known.shape), (False, *known.dynamic)) if known else None
        mask = edit.call(node.graph, aten.unsqueeze.default, (mask, 0), like=node, value=known)
    return mask


def _swapped(known: TensorInfo | None) -> TensorInfo | None:
    def swap(four: tuple[Any, ...]) -> tuple[Any, ...]:
        return four[0], four[2], four[1], four[3]

    return TensorInfo(known.dtype, swap(known.shape), swap(known.dynamic)) if known else None


def _flat(node: fx.Node) -> TensorInfo | None:
    known = _swapped(edit.info(node))
    if known is None:
        return None
    return TensorInfo(known.dtype, (*known.shape[:2], known.shape[2] * known.shape[3]), (*known.dynamic[:2], False))


def _hand_on(node: fx.Node, new: fx.Node, read: _Heads) -> None:
    """Let the readers of the old result read the kernel's; those that want heads apart get views of it."""
    for swap in [user for user in node.users if swaps_positions_and_heads(user)]:
        for flat in [user for user in swap.users if flattens(user)]:
            if "val" in flat.meta:
                new.meta["val"] = flat.meta["val"]
            edit.replace(flat, new)
        if swap.users:
            with node.graph.inserting_before(swap):
                swap.replace_all_uses_with(_apart(node, new, read))
        node.graph.erase_node(swap)
    if node.users:
        with node.graph.inserting_before(node):
            view = _apart(node, new, read)
            back = edit.call(node.graph, aten.transpose.int, (view, 1, 2), like=node, value=edit.info(node))
        node.replace_all_uses_with(back)


def _apart(node: fx.Node, new: fx.Node, read: _Heads) -> fx.Node:
    sizes = (new, 2, [read.heads, read.features])
    return edit.call(node.graph, aten.unflatten.int, sizes, like=node, value=_swapped(edit.info(node)))
