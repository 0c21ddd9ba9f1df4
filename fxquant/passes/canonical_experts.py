"""Products of rows with the weights of their experts, in both of their clothes, to `fxquant::grouped_linear`.

    grouped   rows sorted by expert, and where each group ends: the grouped_mm of transformers
    batched   W[ids] and a batch of products of one row each: gathers a whole weight for every row

The weights [E, N, K] of E experts become the matrix [E·N, K] of their rows, stored transposed where a model has
[E, K, N]. A batched product becomes a sort of its rows, a grouped one, and the reverse of the sort.
"""

import operator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

import fxquant.kernels.reference.grouped  # registers the op this pass emits
from fxquant.graph import edit
from fxquant.graph.edit import TensorInfo
from fxquant.passes.canonical_facts import call_like, substitute

assert fxquant.kernels.reference.grouped
aten = torch.ops.aten
GROUPED_LINEAR = torch.ops.fxquant.grouped_linear.default
# transformers defines its op when it is imported, which nothing here needs.
FALLBACK = "transformers.grouped_mm_fallback.default"
LAST_TWO = {(-2, -1), (-1, -2), (1, 2), (2, 1)}


@dataclass(frozen=True)
class GroupExperts:
    """Rewrite grouped and batched products with constant experts. The same products are summed, in another order."""

    name: ClassVar[str] = "group_experts"
    after: ClassVar[tuple[str, ...]] = ("normalize_arguments", "functionalize", "remove_noops", "merge_duplicates")

    def apply(self, gm: fx.GraphModule) -> int:
        rows: dict[tuple[str, bool], fx.Node] = {}
        count = 0
        for node in list(gm.graph.nodes):
            if node.op == "call_function":
                count += _group(gm, node, rows) or _sort_batch(gm, node, rows)
        if count:
            gm.graph.eliminate_dead_code()
        return count


def _group(gm: fx.GraphModule, node: fx.Node, rows: dict[tuple[str, bool], fx.Node]) -> bool:
    """Rewrite grouped_mm(x [S, K], W [E, K, N], offsets [E])."""
    if str(node.target) != FALLBACK:
        return False
    x, weight, offsets = edit.arguments(node)
    found = _constant(gm, weight)
    if found is None:
        return False
    source, swapped = found
    substitute(node, GROUPED_LINEAR, (x, _rows(gm, source, swapped, rows), offsets))
    return True


def _constant(gm: fx.GraphModule, weight: Any) -> tuple[fx.Node, bool] | None:
    """Return the constant [E, …] behind a factor, and whether the factor swaps its last two axes."""
    swapped = isinstance(weight, fx.Node) and weight.target is aten.transpose.int and weight.args[1:] in LAST_TWO
    source = weight.args[0] if swapped else weight
    if not edit.is_constant(source) or edit.get_tensor(gm, source).ndim != 3:
        return None
    return source, swapped


def _rows(gm: fx.GraphModule, source: fx.Node, swapped: bool, rows: dict[tuple[str, bool], fx.Node]) -> fx.Node:
    """Return the constant [E·N, K] of experts that are [E, N, K], where swapped, or [E, K, N]."""
    key = str(source.target), swapped
    if key not in rows:
        tensor = edit.get_tensor(gm, source).detach()
        tensor = tensor if swapped else tensor.transpose(1, 2)
        rows[key] = edit.add_constant(gm, f"{source.target}_rows", tensor.flatten(0, 1).contiguous(), source)
    return rows[key]


def _sort_batch(gm: fx.GraphModule, node: fx.Node, rows: dict[tuple[str, bool], fx.Node]) -> bool:
    """Rewrite squeeze(bmm(W[ids], unsqueeze(x, 2)), 2), or squeeze(bmm(unsqueeze(x, 1), W[ids]), 1); bmm is matmul."""
    product = node.args[0] if node.target is aten.squeeze.dim else None
    if not isinstance(product, fx.Node) or product.target is not aten.matmul.default:
        return False
    for place, axes in ((0, (2, -1)), (1, (1, -2))):
        chosen, wide = product.args[place], product.args[1 - place]
        ids = _chosen(gm, chosen)
        if ids is None or not _unsqueezes(wide, axes) or node.args[1] not in axes:
            continue
        assert isinstance(chosen, fx.Node) and isinstance(wide, fx.Node)
        source = chosen.args[0]
        assert isinstance(source, fx.Node)
        weight = _rows(gm, source, place == 0, rows)
        _replace(gm, node, wide.args[0], weight, ids, edit.get_tensor(gm, source).shape[0])
        return True
    return False


def _chosen(gm: fx.GraphModule, node: Any) -> Any:
    """Return the ids [S] that choose among experts W [E, …], or None."""
    if not isinstance(node, fx.Node) or node.target is not aten.index.Tensor:
        return None
    source, indices = node.args
    constant = edit.is_constant(source) and edit.get_tensor(gm, source).ndim == 3  # type: ignore[arg-type]
    return indices[0] if constant and len(indices) == 1 else None  # type: ignore[arg-type, index]


def _unsqueezes(node: Any, axes: tuple[int, int]) -> bool:
    return isinstance(node, fx.Node) and node.target is aten.unsqueeze.default and node.args[1] in axes


def _replace(gm: fx.GraphModule, node: fx.Node, x: Any, weight: fx.Node, ids: fx.Node, experts: int) -> None:
    graph, known, result = gm.graph, edit.info(x), edit.info(node)
    numbers = edit.info(ids)
    ends = edit.add_constant(gm, "experts", torch.arange(experts, device=edit.get_tensor(gm, weight).device), node)

    def call(target: Any, *args: Any, value: TensorInfo | None = None, **kwargs: Any) -> fx.Node:
        with graph.inserting_before(node):
            return edit.call(graph, target, args, like=node, value=value, **kwargs)

    both = call(aten.sort.default, ids, -1, False)
    ordered = call(operator.getitem, both, 0, value=numbers)
    order = call(operator.getitem, both, 1, value=numbers)
    value = TensorInfo(torch.int32, (experts,), (False,))
    named = {"out_int32": True, "right": True, "side": None, "sorter": None}
    offsets = call(aten.searchsorted.Tensor, ordered, ends, value=value, **named)
    sorted_rows = call(aten.index.Tensor, x, [order], value=known)
    y = call(GROUPED_LINEAR, sorted_rows, weight, offsets, value=result)
    back = call(aten.argsort.default, order, -1, False, value=numbers)
    edit.replace(node, call_like(node, aten.index.Tensor, (y, [back])))
