"""Move quantizations that no kernel took over down to where the integers are read.

`share_qparams` brings them up to where a value is computed, for the kernel there to take over. Where none does, as
after attention, the quantization parts what makes the value from what reads it: neither attention with the views around
it, nor a region of row-local ops, is then found. Both places give the same numbers, op(quantize(x)) = quantize(op(x)),
for every op of ops/shape.py.
"""

from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch
from torch import fx

from fxquant.graph import edit
from fxquant.graph.edit import TensorInfo
from fxquant.kernels.cpu import packed
from fxquant.ops.shape import MOVES_VALUES

assert packed, "registers the op"
QUANTIZE = torch.ops.fxquant.quantize_static.default


@dataclass(frozen=True)
class SinkQuantize:
    """Move static quantizations behind the ops that hand their integers on.

    One stays where these ops together have more elements, at the example's sizes, than it quantizes, as where values
    are repeated. Whatever else reads its integers goes on doing so.
    """

    name: ClassVar[str] = "sink_quantize"
    after: ClassVar[tuple[str, ...]] = ("lower",)

    def apply(self, gm: fx.GraphModule) -> int:
        """Return how many ops came to stand before a quantization."""
        work = list(gm.graph.find_nodes(op="call_function", target=QUANTIZE))
        count = 0
        while work:
            q = work.pop()
            moves = [user for user in q.users if user.target in MOVES_VALUES]
            if sum(map(_elements, moves)) > _elements(q):
                continue
            work += [_sink(q, move) for move in moves]
            count += len(moves)
            if not q.users:
                gm.graph.erase_node(q)
        return count


def _elements(node: fx.Node) -> int:
    known = edit.info(node)
    assert known is not None, "quantizations and what hands on tensors compute one tensor"
    return prod(known.shape)


def _sink(q: fx.Node, move: fx.Node) -> fx.Node:
    """Let `move` hand on what `q` quantizes, and return the quantization that now comes behind it."""
    source, known = q.args[0], edit.info(move)
    assert isinstance(source, fx.Node) and known is not None
    with q.graph.inserting_before(move):
        value = TensorInfo(torch.float32, known.shape, known.dynamic)
        moved = edit.call(q.graph, move.target, (source, *move.args[1:]), like=move, value=value, **move.kwargs)
        sunk = edit.call(q.graph, QUANTIZE, (moved, *q.args[1:]), like=q, value=known)
    edit.mark(moved, reason=edit.marks(move).get("reason"))
    edit.mark(sunk, spec=edit.marks(q).get("spec"))
    edit.replace(move, sunk)
    return sunk
