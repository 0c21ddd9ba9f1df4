"""Attention spelled out in products and a softmax, the form that runtimes fuse."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from fxquant.graph import edit
from fxquant.integrations.substitutions import note

aten = torch.ops.aten
_LOWEST = torch.finfo(torch.float32).min
_UNSEEN = "queries from which a mask hides every key, as padding may be, give the mean of all values instead of zeros"


@dataclass(frozen=True)
class SpellOutAttention:
    """softmax(q·kᵀ·scale + mask)·v as two products. Same numbers, but for queries that see no key.

    These give zeros where `unseen` is "zeros", by one more product, and the mean of all values where it is "mean", as
    in models that add their masks; they are padding, as a rule. A boolean mask becomes one to be added, for all layers.
    """

    unseen: str = "zeros"
    name: ClassVar[str] = "spell_out_attention"
    after: ClassVar[tuple[str, ...]] = ()

    def apply(self, gm: fx.GraphModule) -> int:
        """Return how many attentions were spelled out."""
        masks: dict[fx.Node, tuple[fx.Node, fx.Node]] = {}
        nodes = [node for node in gm.graph.nodes if node.target is aten.scaled_dot_product_attention.default]
        for node in nodes:
            with gm.graph.inserting_before(node):
                _rewrite(gm, node, masks, self.unseen)
        return len(nodes)


def _rewrite(gm: fx.GraphModule, node: fx.Node, masks: dict[fx.Node, tuple[fx.Node, fx.Node]], unseen: str) -> None:
    query, key, value, mask, _, causal = node.args
    assert isinstance(query, fx.Node) and isinstance(key, fx.Node) and isinstance(value, fx.Node)
    known = edit.info(query)
    assert known is not None, "capture knows every tensor"
    call = _Caller(gm, node)
    if node.kwargs["enable_gqa"]:
        key, value = (_repeated(call, each, known.shape[-3]) for each in (key, value))
    scale = node.kwargs["scale"]
    scale = 1 / math.sqrt(known.shape[-1]) if scale is None else scale
    scaled = call(aten.mul.Tensor, query, scale)
    scores = call(aten.matmul.default, scaled, call(aten.transpose.int, key, -2, -1))
    if causal:
        mask = _causal(call, query, key)
    alive = None
    if isinstance(mask, fx.Node):
        scores, alive = _masked(gm, call, scores, mask, masks)
    weights = call(aten.softmax.int, scores, -1, None)
    result = call(aten.matmul.default, weights, value)
    if alive is not None and unseen == "mean":
        note(gm, node, "unseen queries", _UNSEEN, exact=False)
    elif alive is not None:
        result = call(aten.mul.Tensor, result, alive)
    edit.mark(result, value=edit.info(node).to_dict() if edit.info(node) else None)  # type: ignore[union-attr]
    edit.replace(node, result)


@dataclass(frozen=True)
class _Caller:
    """Inserts calls that belong to the module of `like`."""

    gm: fx.GraphModule
    like: fx.Node

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return edit.call(self.gm.graph, target, args, like=self.like, **kwargs)


def _repeated(call: _Caller, tensor: fx.Node, heads: int) -> fx.Node:
    """Return keys or values with one head for each of the query's."""
    known = edit.info(tensor)
    assert known is not None, "capture knows every tensor"
    times = heads // known.shape[-3]
    return tensor if times == 1 else call(aten.repeat_interleave.self_int, tensor, times, -3)


def _causal(call: _Caller, query: fx.Node, key: fx.Node) -> fx.Node:
    rows, columns = (call(aten.sym_size.int, each, -2) for each in (query, key))
    ones = call(aten.ones.default, [rows, columns], dtype=torch.bool)
    return call(aten.tril.default, ones)


def _masked(
    gm: fx.GraphModule, call: _Caller, scores: fx.Node, mask: fx.Node, masks: dict[fx.Node, tuple[fx.Node, fx.Node]]
) -> tuple[fx.Node, fx.Node | None]:
    """Return the scores under a mask, and 1 for a query that sees a key, else 0; None where the mask is just added."""
    known = edit.info(mask)
    if known is not None and known.dtype is not torch.bool:
        return call(aten.add.Tensor, scores, mask, alpha=1), None
    if mask not in masks:
        with gm.graph.inserting_after(mask):
            seen = call(aten.any.dim, mask, -1, True)
        with gm.graph.inserting_after(seen):
            alive = call(aten.to.dtype, seen, torch.float32, False, False, None)
        with gm.graph.inserting_after(mask):
            hidden = call(aten.where.Scalar, mask, 0.0, _LOWEST)
        masks[mask] = hidden, alive
    added, alive = masks[mask]
    return call(aten.add.Tensor, scores, added, alpha=1), alive
