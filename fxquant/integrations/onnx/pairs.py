"""Quantize and dequantize of activations side by side, the form that OpenVINO reads as one FakeQuantize.

What stands between them otherwise works on integers, which OpenVINO computes in float behind conversions.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from fxquant.graph import edit
from fxquant.graph.edit import TensorInfo
from fxquant.ops.shape import MOVES_VALUES
from fxquant.passes.qdq_nodes import DEQUANTIZE, QUANTIZE

ATTENTION = torch.ops.aten.scaled_dot_product_attention.default


@dataclass(frozen=True)
class QuantizeBehindHeads:
    """quantize(attention) moved behind the ops that bring the heads together. Same numbers.

    A runtime that fuses attention takes these ops in, but not where a quantization parts them from it.
    """

    name: ClassVar[str] = "quantize_behind_heads"
    after: ClassVar[tuple[str, ...]] = ()

    def apply(self, gm: fx.GraphModule) -> int:
        """Return how many ops came to stand before a quantization."""
        work = [q for q in gm.graph.find_nodes(op="call_function", target=QUANTIZE) if q.args[0].target is ATTENTION]
        count = 0
        for q in work:
            move = next(iter(q.users)) if len(q.users) == 1 else q
            if move.target in MOVES_VALUES:
                work.append(_moved_behind(q, move))
                count += 1
        return count


@dataclass(frozen=True)
class DequantizeAtOnce:
    """dequantize(move(q)) → move(dequantize(q)) up to the quantize of q, for q of these types. Same numbers."""

    dtypes: tuple[torch.dtype, ...] = (torch.int8, torch.uint8)
    name: ClassVar[str] = "dequantize_at_once"
    after: ClassVar[tuple[str, ...]] = ("quantize_behind_heads",)

    def apply(self, gm: fx.GraphModule) -> int:
        """Return how many ops came to move floats in place of integers."""
        return sum(
            _dequantized_at_once(q)
            for q in gm.graph.find_nodes(op="call_function", target=QUANTIZE)
            if q.args[3] is None and q.args[6] in self.dtypes and any(user.target in MOVES_VALUES for user in q.users)
        )


def _moved_behind(q: fx.Node, move: fx.Node) -> fx.Node:
    """Let `move`, the only reader of `q`, hand on what `q` quantizes, and return the quantize that now comes behind."""
    source, known = q.args[0], edit.info(move)
    assert isinstance(source, fx.Node), "a quantize reads a tensor"
    with q.graph.inserting_before(move):
        moved = _moving_floats(move, source)
        behind = edit.call(q.graph, QUANTIZE, (moved, *q.args[1:]), like=q, value=known)
    edit.mark(behind, spec=edit.marks(q).get("spec"))
    edit.replace(move, behind)
    q.graph.erase_node(q)
    return behind


def _dequantized_at_once(q: fx.Node) -> int:
    readers = [user for user in q.users if user.target in MOVES_VALUES and _dequantized(user)]
    if not readers:
        return 0
    known = edit.info(q)
    value = TensorInfo(torch.float32, known.shape, known.dynamic) if known else None
    with q.graph.inserting_after(q):
        floats = edit.call(q.graph, DEQUANTIZE, (q, *q.args[1:3], None), like=q, value=value)
    edit.mark(floats, spec=edit.marks(q).get("spec"))
    return sum(_move_floats(move, floats) for move in readers)


def _dequantized(move: fx.Node) -> bool:
    """Say whether what a move of integers hands on is dequantized by all that reads it."""
    return all(user.target is DEQUANTIZE or (user.target in MOVES_VALUES and _dequantized(user)) for user in move.users)


def _move_floats(move: fx.Node, source: fx.Node) -> int:
    """Put a move of the floats `source` in the place of a move of integers, and of those behind it; return how many."""
    with move.graph.inserting_before(move):
        moved = _moving_floats(move, source)
    count = 1
    for user in list(move.users):
        if user.target is DEQUANTIZE:
            edit.replace(user, moved)
        else:
            count += _move_floats(user, moved)
    move.graph.erase_node(move)
    return count


def _moving_floats(move: fx.Node, source: fx.Node) -> fx.Node:
    """Insert what `move` does, of floats."""
    known = edit.info(move)
    value = TensorInfo(torch.float32, known.shape, known.dynamic) if known else None
    return edit.call(move.graph, move.target, (source, *move.args[1:]), like=move, value=value, **move.kwargs)
