"""Attention whose keys and values are joined to a cache → `fxquant::cached_attention`, which does both.

A decoding step joins its new keys and values to those of the tokens before, attends to all, and returns them as the
longer cache. Joined by ATen's `cat`, the whole cache is copied at each token. The kernel writes the new ones behind the
cache where there is room, and turns queries and keys by their rotary embedding on the way. As a function it is the
same: it leaves the cache that it is given as it is.
"""

import operator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from fxquant.graph import edit
from fxquant.kernels.cpu import native
from fxquant.passes.attention_heads import Heads, flat, hand_on, mask_of, read_heads, rows_of
from fxquant.passes.attention_operands import Operand, operand, same_size
from fxquant.passes.attention_spelling import Spelled, spelled
from fxquant.passes.claims import hand_over
from fxquant.passes.fuse_rotary import ROTARY

aten = torch.ops.aten
CACHED = torch.ops.fxquant.cached_attention.default


@dataclass(frozen=True)
class FuseCaches:
    """Replace attention in float32 on cat([cache, new], -2) by the kernel; the longer caches are results of it.

    A cache is an input of the graph. A model's forward alone, whose caches begin empty inside, has none.
    Attention that reads other keys stays as it is, and so does all where the C++ kernels cannot be had.
    """

    name: ClassVar[str] = "fuse_caches"
    after: ClassVar[tuple[str, ...]] = ("lower", "merge_linears", "sink_quantize", "fuse_rotary")

    def apply(self, gm: fx.GraphModule) -> int:
        """Return how many attentions became the kernel."""
        count = 0
        for attention in spelled(gm) if native.available() else ():
            heads = read_heads(attention)
            step = None if isinstance(heads, str) else _read(heads)
            if step is not None and isinstance(heads, Heads):
                _replace(attention, heads, step)
                count += 1
        if count:
            edit.sort(gm)
            edit.sweep(gm)
        return count


@dataclass(frozen=True)
class _Step:
    """What a step adds to a cache: the joined keys and values, the cache before, and query, key and value, unturned."""

    joined: tuple[fx.Node, fx.Node]
    past: tuple[fx.Node, fx.Node]
    operands: tuple[Operand, Operand, Operand]
    rotary: tuple[Any, Any, bool]
    turning: tuple[fx.Node, ...]


def _read(heads: Heads) -> _Step | None:
    key, value = heads.key.node, heads.value.node
    keys, values = _joined(key), _joined(value)
    if keys is None or values is None:
        return None
    (past_key, new_key), (past_value, new_value) = keys, values
    query = heads.query.node
    if not all(same_size(query, new, axis) for new in (new_key, new_value) for axis in (0, 2)):
        return None
    turned = _rotary(query, new_key)
    rotary, turning = (None, None, False), tuple[fx.Node, ...]()
    if turned is not None:
        turning, rotary = (query, new_key), turned
        query, new_key = query.args[0], new_key.args[0]  # type: ignore[assignment]
    operands = operand(query), operand(new_key), operand(new_value)
    return _Step((key, value), (past_key, past_value), operands, rotary, turning)


def _joined(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """Return the cache, an input of the graph, and what a node joins to it, (B, heads, length, D) both."""
    if node.target is not aten.cat.default or node.args[1] not in (-2, 2):
        return None
    parts: Any = node.args[0]
    known = [edit.info(part) for part in parts]
    if len(parts) != 2 or any(each is None or len(each.shape) != 4 for each in known):
        return None
    return (parts[0], parts[1]) if parts[0].op == "placeholder" and parts[0] is not parts[1] else None


def _rotary(query: fx.Node, key: fx.Node) -> tuple[Any, Any, bool] | None:
    """Return by what both query and key are turned, where nothing else reads them."""
    if query.target is not ROTARY or key.target is not ROTARY or query.args[1:] != key.args[1:]:
        return None
    if len(query.users) > 1 or len(key.users) > 1:
        return None
    cos, sin, interleaved = query.args[1:]
    return cos, sin, bool(interleaved)


def _replace(attention: Spelled, read: Heads, step: _Step) -> None:
    node, graph = attention.result, attention.result.graph
    cos, sin, interleaved = step.rotary
    mask, diagonal = mask_of(attention), 0 if attention.causal else None
    with graph.inserting_before(node):
        rows = rows_of(*step.operands)
        sizes = (read.heads, read.kv_heads, read.scale, diagonal, interleaved)
        kernel = edit.call(graph, CACHED, (*rows, *step.past, mask, cos, sin, *sizes), like=node)
        results = [
            edit.call(graph, operator.getitem, (kernel, index), like=like, value=value)
            for index, like, value in (
                (0, node, flat(node)),
                *((place, joined, edit.info(joined)) for place, joined in enumerate(step.joined, 1)),
            )
        ]
    hand_over((*step.turning, *step.joined, attention.result), kernel)
    hand_on(node, results[0], read)
    graph.erase_node(node)
    for joined, result in zip(step.joined, results[1:], strict=True):
        result.meta |= {key: value for key, value in joined.meta.items() if key == "val"}
        joined.replace_all_uses_with(result)
