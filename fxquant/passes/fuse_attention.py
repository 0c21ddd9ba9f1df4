"""Scaled dot-product attention → `fxquant::x86_attention`, which reads and writes heads where linears leave them.

ATen's attention takes [B, H, S, D], so around it stand a view and a transpose for each operand and for the result. The
kernel takes [B, S, H·D]: they go. Where query, key and value are columns of one tensor, the kernel reads that. Keys and
values that the graph repeats for groups of queries are read once. Operands that are made as [B, H, S, D], as rotary
embeddings make them, are read by their strides.

softmax(q·kᵀ·scale + mask)·v is computed with other roundings than torch's (docs/kernels.md).
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from fxquant.graph import edit
from fxquant.graph.edit import TensorInfo
from fxquant.kernels.x86 import native
from fxquant.passes.attention_operands import Operand, flattens, joined, operand, swaps_positions_and_heads, unrepeated
from fxquant.passes.claims import hand_over

aten = torch.ops.aten
SDPA = aten.scaled_dot_product_attention.default
ATTENTION = torch.ops.fxquant.x86_attention.default
MASKS = (torch.bool, torch.float32)


@dataclass(frozen=True)
class FuseAttention:
    """Replace attention in float32 by the kernel, and drop the views and transposes around it.

    What cannot be replaced keeps its reason in `fallback`. Where the C++ kernels cannot be had, all stays as it is.
    """

    name: ClassVar[str] = "fuse_attention"
    after: ClassVar[tuple[str, ...]] = ("lower", "merge_linears")

    def apply(self, gm: fx.GraphModule) -> int:
        """Return how many attentions became the kernel."""
        count = 0
        for node in gm.graph.find_nodes(op="call_function", target=SDPA) if native.available() else ():
            read = _read(node)
            if isinstance(read, str):
                edit.mark(node, fallback=f"kernel x86_attention: {read}")
                continue
            _replace(node, read)
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


def _read(node: fx.Node) -> _Heads | str:
    """Return the operands of an attention as the kernel takes them, or why it cannot."""
    query, key, value, mask, dropout = node.args[:5]
    known = [edit.info(each) if isinstance(each, fx.Node) else None for each in (query, key, value)]
    q, k, v = known
    if q is None or k is None or v is None or any(not _four(each) for each in (q, k, v)):
        return "query, key and value have to be float32 [batch, heads, positions, features], heads and features fixed"
    refused = _refused(q, k, v) or _refused_mask(mask)
    if refused or dropout != 0:
        return refused or "it drops out weights"
    key, value = unrepeated(key, value)
    heads, kv_heads = q.shape[1], _heads_of(key)
    if heads % kv_heads or not (node.kwargs["enable_gqa"] or k.shape[1] in (1, heads)):
        return f"{heads} query heads cannot share {k.shape[1]} key heads evenly"
    return _Heads(operand(query), operand(key), operand(value), heads, kv_heads, q.shape[3])


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


def _refused_mask(mask: Any) -> str | None:
    known = edit.info(mask) if isinstance(mask, fx.Node) else None
    if mask is not None and (known is None or known.dtype not in MASKS or len(known.shape) > 4):
        return "the mask has to be boolean or float32, of at most 4 dimensions"
    return None


def _heads_of(node: Any) -> int:
    known = edit.info(node)
    assert known is not None, "the caller has seen its shape"
    return known.shape[1]


def _replace(node: fx.Node, read: _Heads) -> None:
    graph, mask, causal = node.graph, node.args[3], node.args[5]
    with graph.inserting_before(node):
        rows = joined(read.query, read.key, read.value, read.features) or tuple(
            _rows(each) for each in (read.query, read.key, read.value)
        )
        scale = node.kwargs["scale"]
        scale = read.features**-0.5 if scale is None else scale
        tail = (_mask(node, mask), None, read.heads, read.kv_heads, scale, causal)
        new = edit.call(graph, ATTENTION, (*rows, *tail), like=node, value=_flat(node))
    hand_over((node,), new)
    _hand_on(node, new, read)
    graph.erase_node(node)


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
        for flat in [user for user in swap.users if flattens(user, swap)]:
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
