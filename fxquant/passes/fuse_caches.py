"""Attention to a cache: `fxquant::cached_attention` where keys and values are joined to it, else `cross_attention`.

A decoding step joins its new keys and values to those of the tokens before, attends to all, and returns them as the
longer cache. Joined by ATen's `cat`, the whole cache is copied at each token. The kernel writes the new ones behind the
cache where there is room, and normalizes queries and keys head by head, turns them by their rotary embedding and caps
scores on the way. As a function it is the same: it leaves the cache that it is given as it is. A decoder's attention to
its source, whose keys and values are inputs of the step and stay what they are, reads them where they lie.
"""

import operator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from fxquant.graph import edit
from fxquant.kernels.cpu import native
from fxquant.passes.attention_heads import Heads, flat, hand_on, mask_of, read_heads, rows, rows_of
from fxquant.passes.attention_operands import Operand, flat_source, operand, same_size, swaps_positions_and_heads
from fxquant.passes.attention_spelling import Spelled, capped, spelled
from fxquant.passes.claims import hand_over
from fxquant.passes.fuse_rotary import ROTARY

aten = torch.ops.aten
CACHED = torch.ops.fxquant.cached_attention.default
CROSS = torch.ops.fxquant.cross_attention.default


@dataclass(frozen=True)
class FuseCaches:
    """Replace attention in float32 on cat([cache, new], -2), or on a cache alone, by a kernel.

    A cache is an input of the graph. A model's forward alone, whose caches begin empty inside, has none.
    Attention that reads other keys stays as it is, and so does all where the C++ kernels cannot be had.
    """

    name: ClassVar[str] = "fuse_caches"
    after: ClassVar[tuple[str, ...]] = ("lower", "merge_linears", "sink_quantize", "fuse_rotary")

    def apply(self, gm: fx.GraphModule) -> int:
        """Return how many attentions became the kernel."""
        count = 0
        for attention in (*spelled(gm), *capped(gm)) if native.available() else ():
            heads = read_heads(attention)
            if isinstance(heads, Heads):
                count += _to_kernel(attention, heads)
        if count:
            edit.sort(gm)
            edit.sweep(gm)
        return count


def _to_kernel(attention: Spelled, heads: Heads) -> bool:
    """Replace an attention by the kernel that reads its cache, if it has one."""
    step = _read(heads)
    if step is not None:
        _replace(attention, heads, step)
        return True
    kept = heads.key.node.op == heads.value.node.op == "placeholder"
    if not kept or attention.causal or attention.cap is not None:
        return False
    _replace_cross(attention, heads)
    return True


@dataclass(frozen=True)
class _Step:
    """What a step adds to a cache: the joined keys and values, the cache before, and query, key and value as they come.

    `norms` are the weights of the norms that queries and keys go through first, `rotary` is what they are turned by,
    and `nodes` compute all that.
    """

    joined: tuple[fx.Node, fx.Node]
    past: tuple[fx.Node, fx.Node]
    operands: tuple[Operand, Operand, Operand]
    norms: tuple[fx.Node | None, fx.Node | None]
    eps: float
    rotary: tuple[Any, Any, bool]
    nodes: tuple[fx.Node, ...]


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
    rotary, nodes = (None, None, False) if turned is None else turned, tuple[fx.Node, ...]()
    if turned is not None:
        nodes = (query, new_key)
        query, new_key = query.args[0], new_key.args[0]  # type: ignore[assignment]
    own = _normalized(query) or _Normalized(heads.query if turned is None else operand(query))
    new = _normalized(new_key) or _Normalized(operand(new_key))
    if len({each.eps for each in (own, new) if each.norm}) > 1:
        return None
    norms, eps = (own.weight, new.weight), own.eps or new.eps
    nodes = (*(each.norm for each in (own, new) if each.norm), *nodes)
    operands = own.operand, new.operand, operand(new_value)
    return _Step((key, value), (past_key, past_value), operands, norms, eps, rotary, nodes)


@dataclass(frozen=True)
class _Normalized:
    """An operand, and the node `norm` that it goes through with its weight, where there is one."""

    operand: Operand
    norm: fx.Node | None = None
    weight: fx.Node | None = None
    eps: float = 0.0


def _normalized(node: fx.Node) -> _Normalized | None:
    """Return what a node [B, heads, S, D] is the RMS norm of, head by head, taken before or after heads are moved."""
    swapped = swaps_positions_and_heads(node)
    norm: Any = node.args[0] if swapped else node
    if norm.target is not aten.rms_norm.default or len(node.users) > 1 or len(norm.users) > 1:
        return None
    source, shape, weight, eps = norm.args
    known = edit.info(weight) if edit.is_constant(weight) else None
    if len(shape) != 1 or known is None or known.dtype is not torch.float32:
        return None
    read = Operand(node, flat_source(source)) if swapped else operand(source)
    return _Normalized(read, norm, weight, torch.finfo(torch.float32).eps if eps is None else eps)


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
        rows, groups = rows_of(*step.operands, most=read.heads)
        tensors = (*rows, *step.past, mask, None, *step.norms, cos, sin)
        sizes = (read.heads, read.kv_heads, read.scale, attention.cap, diagonal, None, step.eps, interleaved, groups)
        kernel = edit.call(graph, CACHED, (*tensors, *sizes), like=node)
        results = [
            edit.call(graph, operator.getitem, (kernel, index), like=like, value=value)
            for index, like, value in (
                (0, node, flat(node)),
                *((place, joined, edit.info(joined)) for place, joined in enumerate(step.joined, 1)),
            )
        ]
    hand_over((*step.nodes, *step.joined, *attention.nodes), kernel)
    hand_on(node, results[0], read)
    graph.erase_node(node)
    for joined, result in zip(step.joined, results[1:], strict=True):
        result.meta |= {key: value for key, value in joined.meta.items() if key == "val"}
        joined.replace_all_uses_with(result)


def _replace_cross(attention: Spelled, read: Heads) -> None:
    node, graph = attention.result, attention.result.graph
    mask = mask_of(attention)
    with graph.inserting_before(node):
        args = (rows(read.query), read.key.node, read.value.node, mask, read.heads, read.scale)
        kernel = edit.call(graph, CROSS, args, like=node, value=flat(node))
    hand_over(attention.nodes, kernel)
    hand_on(node, kernel, read)
    graph.erase_node(node)
