"""What kernels of attention have in common: the operands that they can take, their masks, and who reads the result."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fxquant.graph import edit
from fxquant.graph.edit import TensorInfo
from fxquant.passes.attention_columns import merged
from fxquant.passes.attention_operands import (
    Operand,
    flattens,
    operand,
    swaps_positions_and_heads,
    unrepeated,
    unscaled,
)
from fxquant.passes.attention_spelling import Spelled

aten = torch.ops.aten
MASKS = (torch.bool, torch.float32)


@dataclass(frozen=True)
class Heads:
    """An attention that the kernel can compute; `features` are those of one head."""

    query: Operand
    key: Operand
    value: Operand
    heads: int
    kv_heads: int
    features: int
    scale: float


def read_heads(attention: Spelled) -> Heads | str:
    """Return the operands of an attention as the kernel takes them, or why it cannot."""
    q, k, v = (edit.info(each) for each in (attention.query, attention.key, attention.value))
    if q is None or k is None or v is None or any(not _four(each) for each in (q, k, v)):
        return "query, key and value have to be float32 [batch, heads, positions, features], heads and features fixed"
    refused = _refused(q, k, v) or _refused_mask(attention.mask)
    if refused or attention.dropout != 0:
        return refused or "it drops out weights"
    key, value = unrepeated(attention.key, attention.value)
    heads, kv_heads = q.shape[1], _heads_of(key)
    if heads % kv_heads or not (attention.grouped or k.shape[1] in (1, heads)):
        return f"{heads} query heads cannot share {k.shape[1]} key heads evenly"
    scale = q.shape[3] ** -0.5 if attention.scale is None else attention.scale
    query, factor = unscaled(operand(attention.query))
    return Heads(query, operand(key), operand(value), heads, kv_heads, q.shape[3], scale * factor)


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


def _refused_mask(mask: fx.Node | None) -> str | None:
    known = None if mask is None else edit.info(mask)
    if mask is not None and (known is None or known.dtype not in MASKS or len(known.shape) > 4):
        return "the mask has to be boolean or float32, of at most 4 dimensions"
    return None


def _heads_of(node: Any) -> int:
    known = edit.info(node)
    assert known is not None, "the caller has seen its shape"
    return known.shape[1]


def rows_of(query: Operand, key: Operand, value: Operand, most: int = 1) -> tuple[tuple[fx.Node | None, ...], int]:
    """Return query, key and value as kernels take them: merged, or each with its positions before its heads.

    With them comes in how many groups the heads of a merged tensor lie; in more than `most` it is left apart.
    """
    found = merged(query, key, value)
    if found is not None and found.groups <= most:
        return (found.source, None, None), found.groups
    return tuple(map(rows, (query, key, value))), 1


def mask_of(attention: Spelled) -> fx.Node | None:
    """Return the mask of an attention with four dimensions; what comes with two is no padding mask here."""
    with attention.result.graph.inserting_before(attention.result):
        return None if attention.mask is None else _with_four(attention.result, attention.mask)


def rows(operand: Operand) -> fx.Node:
    """Return an operand as [B, S, heads·D] or [B, S, heads, D], transposing where the graph has no such value."""
    if operand.rows is not None:
        return operand.rows
    node = operand.node
    moved = edit.call(node.graph, aten.transpose.int, (node, 1, 2), like=node, value=_swapped(edit.info(node)))
    if isinstance(node.meta.get("val"), torch.Tensor):
        moved.meta["val"] = node.meta["val"].transpose(1, 2)
    return moved


def _with_four(node: fx.Node, mask: fx.Node) -> fx.Node:
    known = edit.info(mask)
    for _ in range(4 - len(known.shape) if known else 0):
        known = TensorInfo(known.dtype, (1, *known.shape), (False, *known.dynamic)) if known else None
        mask = edit.call(node.graph, aten.unsqueeze.default, (mask, 0), like=node, value=known)
    return mask


def _swapped(known: TensorInfo | None) -> TensorInfo | None:
    def swap(four: tuple[Any, ...]) -> tuple[Any, ...]:
        return four[0], four[2], four[1], four[3]

    return TensorInfo(known.dtype, swap(known.shape), swap(known.dynamic)) if known else None


def flat(node: fx.Node) -> TensorInfo | None:
    """Return what is known of attention's result [B, H, S, D] as [B, S, H·D]."""
    known = _swapped(edit.info(node))
    if known is None:
        return None
    return TensorInfo(known.dtype, (*known.shape[:2], known.shape[2] * known.shape[3]), (*known.dynamic[:2], False))


def hand_on(node: fx.Node, new: fx.Node, read: Heads) -> None:
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


def _apart(node: fx.Node, new: fx.Node, read: Heads) -> fx.Node:
    sizes = (new, 2, [read.heads, read.features])
    return edit.call(node.graph, aten.unflatten.int, sizes, like=node, value=_swapped(edit.info(node)))
