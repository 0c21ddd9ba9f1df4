"""Ops that take each row by itself take any number of leading axes: flattening them before and restoring them after it
does nothing.

    reshape(f(reshape(x, [-1, K])), [*x.shape[:-1], N])  =  f(x)

where f is made of linears, norms, sums and activations, as GPT-2's Conv1D is, and OPT's feed-forward network.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from fxquant.graph import edit
from fxquant.graph.edit import TensorInfo
from fxquant.passes.canonical_facts import sizes

aten = torch.ops.aten
RESHAPE = aten.reshape.default
# What treats the rows of its first argument one by one, if its others are constants.
BY_ROW = (aten.linear.default, aten.layer_norm.default, aten.rms_norm.default)


@dataclass(frozen=True)
class LiftFlattening:
    """Drop the reshapes around ops on rows where the leading axes provably come back as they were. Exact.

    The ops stay the nodes that they are, with their module paths.
    """

    name: ClassVar[str] = "lift_flattening"
    after: ClassVar[tuple[str, ...]] = ("products_to_linear", "fold_bias")

    def apply(self, gm: fx.GraphModule) -> int:
        flat = {node: node.args[0] for node in gm.graph.nodes if _flattens(node)}
        lifted = _between(gm, flat) if flat else {}
        for node, x in lifted.items():
            for index, each in enumerate(node.args):
                if isinstance(each, fx.Node) and each in flat:
                    edit.set_argument(node, index, flat[each])
            _describe(node, x)
        for node in lifted:
            for restored in list(_restored(node, lifted)):
                edit.replace(restored, node)
        if lifted:
            gm.graph.eliminate_dead_code()
        return sum(node.target is aten.linear.default for node in lifted)


def _flattens(node: fx.Node) -> bool:
    """Say whether a node is [..., K] → [rows, K]."""
    before, after = (sizes(each) for each in (node.args[0], node)) if node.target is RESHAPE else (None, None)
    return bool(before and after and len(before) > 2 and len(after) == 2 and before[-1] == after[-1])


def _between(gm: fx.GraphModule, flat: dict[fx.Node, Any]) -> dict[fx.Node, fx.Node]:
    """Return the ops on rows between flattenings and what restores their axes, with a tensor that has these axes."""
    found = dict(flat)
    for node in gm.graph.nodes:
        source = _rows_of(node, found)
        if source is not None:
            found[node] = source
    while True:
        stuck = [node for node in found if node not in flat and not _stays_inside(node, found)]
        if not stuck:
            return {node: x for node, x in found.items() if node not in flat}
        for node in stuck:
            del found[node]


def _rows_of(node: fx.Node, found: dict[fx.Node, Any]) -> Any:
    """Return a tensor with the leading axes of the rows that an op takes one by one; None for any other op."""
    rows = _reads(node)
    if not rows or any(each not in found for each in rows) or any(each in found for each in _others(node, rows)):
        return None
    leading = {(sizes(found[each]) or ())[:-1] for each in rows}
    return found[rows[0]] if len(leading) == 1 else None


def _reads(node: fx.Node) -> list[Any]:
    """Return the operands that have a row for each row of the result; none for an op that is not known to have such."""
    if len(sizes(node) or ()) != 2:
        return []
    if node.target in BY_ROW:
        whole = node.target is not aten.linear.default and len(node.args[1]) != 1  # type: ignore[arg-type]
        return [] if whole else [node.args[0]]
    tags = node.target.tags if isinstance(node.target, torch._ops.OpOverload) else ()
    if torch.Tag.pointwise not in tags or torch.Tag.nondeterministic_seeded in tags:
        return []
    rows = [each for each in node.all_input_nodes if not edit.is_constant(each)]
    single = all(len(sizes(each) or ()) == 1 for each in _others(node, rows))
    return rows if single else []


def _others(node: fx.Node, rows: list[Any]) -> list[fx.Node]:
    return [each for each in node.all_input_nodes if each not in rows]


def _stays_inside(node: fx.Node, found: dict[fx.Node, Any]) -> bool:
    """Say whether a node reads rows that were found, and is read by those or by what restores their axes."""
    outer = set(node.users) - set(_restored(node, found))
    return all(each in found for each in (*_reads(node), *outer))


def _restored(node: fx.Node, found: dict[fx.Node, Any]) -> Iterator[fx.Node]:
    """Yield the readers of rows that give them their leading axes again."""
    made, before = sizes(node), sizes(found[node])
    assert made is not None and before is not None, "they have been compared before"
    for user in node.users:
        # As many rows come back as there were, so a row of the result was a row of what was flattened.
        if user.target is RESHAPE and sizes(user) == (*before[:-1], made[-1]):
            yield user


def _describe(node: fx.Node, x: fx.Node) -> None:
    """Record that a node's rows have the leading axes of `x`."""
    old, like = node.meta.get("val"), x.meta.get("val")
    if isinstance(old, Tensor) and isinstance(like, Tensor):
        node.meta["val"] = like.new_empty((*like.shape[:-1], old.shape[-1]), dtype=old.dtype)
    known, wide = edit.info(node), edit.info(x)
    assert known is not None and wide is not None, "its sizes are known"
    shape, dynamic = (*wide.shape[:-1], known.shape[-1]), (*wide.dynamic[:-1], known.dynamic[-1])
    edit.mark(node, value=TensorInfo(known.dtype, shape, dynamic).to_dict())
