"""Products with a constant matrix, in all their clothes, to `linear(x, weight [N, K], bias [N])`.

    addmm(b, x, W)  ·  x @ W  ·  x @ wᵀ  ·  linear(x, Wᵀ)      (GPT-2's Conv1D, mm, matmul, einsum-free projections)

W [K, N] is stored transposed, once for all its readers. A product whose both factors are computed at run time stays a
`matmul`; `addmm` is spelled out as a product and an addition there, and `baddbmm` everywhere.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from fxquant.graph import edit
from fxquant.passes.canonical_facts import call_like, computed, sizes, substitute

aten = torch.ops.aten


@dataclass(frozen=True)
class ProductsToLinear:
    """Rewrite products with a constant right factor into linears.

    The same products are summed, though a kernel for another memory order may add them up in another order: each sum
    of K products is within the usual bound K·u·Σ|x·w| of either.
    """

    name: ClassVar[str] = "products_to_linear"
    after: ClassVar[tuple[str, ...]] = ("normalize_arguments", "unify_spelling", "remove_noops", "merge_duplicates")

    def apply(self, gm: fx.GraphModule) -> int:
        weights: dict[str, fx.Node] = {}
        count = sum(_rewrite(gm, node, weights) for node in list(gm.graph.nodes) if node.op == "call_function")
        if count:
            gm.graph.eliminate_dead_code()
        return count


def _rewrite(gm: fx.GraphModule, node: fx.Node, weights: dict[str, fx.Node]) -> bool:
    if node.target is aten.addmm.default and node.kwargs == {"beta": 1, "alpha": 1}:
        return _rewrite_addmm(gm, node, weights)
    if node.target is aten.baddbmm.default:
        return _spell_out_baddbmm(node)
    if node.target is aten.matmul.default:
        weight = _as_weight(gm, node.args[1], weights)
        if weight is not None:
            substitute(node, aten.linear.default, (node.args[0], weight, None))
        return weight is not None
    if node.target is aten.linear.default and not edit.is_constant(node.args[1]):
        matrix = _constant_matrix(gm, node.args[1])
        if matrix is not None:
            source, transposed = matrix
            edit.set_argument(node, 1, _transpose(gm, source, weights) if transposed else source)
        return matrix is not None
    return False


def _rewrite_addmm(gm: fx.GraphModule, node: fx.Node, weights: dict[str, fx.Node]) -> bool:
    bias, x, factor = node.args
    weight = _as_weight(gm, factor, weights)
    width = (sizes(node) or (None,))[-1]
    if weight is not None and sizes(bias) == (width,):
        substitute(node, aten.linear.default, (x, weight, bias))
        return True
    target, args = (aten.matmul.default, (x, factor)) if weight is None else (aten.linear.default, (x, weight, None))
    substitute(node, aten.add.Tensor, (call_like(node, target, args), bias))
    return True


def _spell_out_baddbmm(node: fx.Node) -> bool:
    """Rewrite beta·z + alpha·(a @ b) as what it says."""
    addend, a, b = node.args
    product = call_like(node, aten.matmul.default, (a, b))
    if node.kwargs["alpha"] != 1:
        product = call_like(node, aten.mul.Tensor, (product, node.kwargs["alpha"]))
    if node.kwargs["beta"] == 0:  # the addend is not even read
        edit.replace(node, product)
        return True
    if node.kwargs["beta"] != 1:
        addend = computed(node, aten.mul.Tensor, (addend, node.kwargs["beta"]))
    substitute(node, aten.add.Tensor, (product, addend))
    return True


def _as_weight(gm: fx.GraphModule, factor: Any, weights: dict[str, fx.Node]) -> fx.Node | None:
    """Return a constant [N, K] for the right factor [K, N] of a product, or None where that is no constant matrix."""
    matrix = _constant_matrix(gm, factor)
    if matrix is None:
        return None
    source, transposed = matrix
    return source if transposed else _transpose(gm, source, weights)


def _constant_matrix(gm: fx.GraphModule, node: Any) -> tuple[fx.Node, bool] | None:
    """Return the constant matrix behind `node`, and whether `node` is its transpose."""
    transposed = False
    while isinstance(node, fx.Node) and node.op == "call_function" and _swaps_axes(node):
        node, transposed = node.args[0], not transposed
    if not edit.is_constant(node) or edit.get_tensor(gm, node).ndim != 2:
        return None
    return node, transposed


def _swaps_axes(node: fx.Node) -> bool:
    """Say whether `node` would transpose a matrix."""
    if node.target is aten.transpose.int:
        return {axis % 2 for axis in edit.arguments(node)[1:]} == {0, 1}
    return node.target is aten.permute.default and [axis % 2 for axis in edit.arguments(node)[1]] == [1, 0]


def _transpose(gm: fx.GraphModule, source: fx.Node, weights: dict[str, fx.Node]) -> fx.Node:
    """Return the constant that holds the transpose of `source`, stored when it is first asked for."""
    target = str(source.target)
    if target not in weights:
        transposed = edit.get_tensor(gm, source).detach().t().contiguous()
        weights[target] = edit.add_constant(gm, f"{target}_t", transposed, before=source)
    return weights[target]
