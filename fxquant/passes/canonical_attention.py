"""Attention written out as two products around a softmax → `scaled_dot_product_attention`, and that in one form.

    softmax(q·kᵀ·scale + masks)·v      masks are added, filled in, or chosen by a condition

over [B, H, S, D], or heads merged into the batch, [B·H, S, D], which come apart where the scores do. Keys and values
that are repeated for groups of queries are given once, with `enable_gqa`. What reads the probabilities, or bounds the
scores by a tanh (Gemma 2), has no such form, and stays products around a softmax.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from fxquant.graph import edit
from fxquant.passes.attention_operands import unrepeated
from fxquant.passes.attention_scores import MATMUL, Scores, behind_reshapes, read_scores
from fxquant.passes.canonical_facts import computed, dtype_of, same_shape, sizes, substitute

aten = torch.ops.aten
SDPA = aten.scaled_dot_product_attention.default


@dataclass(frozen=True)
class RecomposeAttention:
    """Rewrite attention that is written out, and say once what it repeats. Within a few roundings of a softmax."""

    name: ClassVar[str] = "recompose_attention"
    after: ClassVar[tuple[str, ...]] = ("unify_spelling", "remove_noops", "fold_constants")

    def apply(self, gm: fx.GraphModule) -> int:
        products = gm.graph.find_nodes(op="call_function", target=MATMUL)
        made: dict[Any, Any] = {}
        count = sum(_recompose(gm, node, made) for node in products)
        count += sum(_group(node) for node in list(gm.graph.nodes) if node.target is SDPA)
        if count:
            gm.graph.eliminate_dead_code()
        return count


def _recompose(gm: fx.GraphModule, product: fx.Node, made: dict[Any, Any]) -> bool:
    """Rewrite softmax(…)·v where it is attention; `made` are the masks that layers before it put together."""
    softmax, _ = behind_reshapes(product.args[0])
    if softmax is None or softmax.target is not aten.softmax.int or softmax.args[2] not in (None, dtype_of(product)):
        return False
    scores = read_scores(gm, softmax.args[0])
    if scores is None or softmax.args[1] not in (-1, len(sizes(softmax) or ()) - 1):
        return False
    query: Any
    query, key, value = scores.product.args[0], scores.product.args[1], product.args[1]
    if not _fit((query, key, value), scores.split):
        return False
    key, mask = _swapped(product, key), _mask(product, scores, made)
    operands = [_apart(product, each, scores.split) for each in (query, key, value)]
    new = computed(product, SDPA, (*operands, mask, 0.0, False), {"scale": scores.scale, "enable_gqa": False})
    if len(sizes(product) or ()) == 3 and scores.split is not None:
        new = computed(product, aten.reshape.default, (new, _merged(product, new, value)))
    edit.replace(product, new)
    _merge_reshapes(new)
    return True


def _fit(operands: tuple[Any, ...], split: Any) -> bool:
    """Say whether all are matrices for each head, or those that are not can be parted; their features are known."""
    shapes = [sizes(each) or () for each in operands]
    ranks = {len(shape) for shape in shapes}
    typed = all("val" in each.meta for each in operands) and all(isinstance(shape[-1], int) for shape in shapes[::2])
    return typed and (ranks <= {3, 4} if split is not None else ranks in ({3}, {4}))


def _swapped(before: fx.Node, key: Any) -> Any:
    """Return the key of which a factor is the transpose."""
    rank = len(sizes(key) or ())
    if key.target is aten.transpose.int and {axis % rank for axis in key.args[1:]} == {rank - 2, rank - 1}:
        return key.args[0]
    return computed(before, aten.transpose.int, (key, -2, -1))


def _apart(before: fx.Node, node: Any, split: Any) -> Any:
    """Return an operand [B, H, S, D], where `split` gives B and H, for one of [B·H, S, D]."""
    if split is None or len(sizes(node) or ()) == 4:
        return node
    source = node.args[0] if node.target is aten.reshape.default else None
    shape, inner = sizes(split) or (), sizes(source) or ()
    if len(inner) == 4 and inner[:2] == shape[:2] and inner[3] == (sizes(node) or ())[-1]:
        return source
    rest = [computed(before, aten.sym_size.int, (node, 1)), (sizes(node) or (None,))[-1]]
    return computed(before, aten.reshape.default, (node, [*split.args[1][:2], *rest]))


def _merged(before: fx.Node, parted: Any, value: Any) -> list[Any]:
    """Return sizes that merge heads into the batch again, [B·H, S, D] for a result [B, H, S, D]."""
    return [-1, computed(before, aten.sym_size.int, (parted, 2)), (sizes(value) or (None,))[-1]]


def _mask(before: fx.Node, scores: Scores, made: dict[Any, Any]) -> Any:
    """Return the sum of the masks, or None; with heads apart where the scores are parted."""
    merged = any(len(sizes(node) or ()) == 3 for _, node, _ in scores.masks)
    key = (tuple(scores.masks), tuple(scores.split.args[1][:2]) if merged and scores.split is not None else None)
    if key not in made:
        made[key] = _sum(before, scores)
    return made[key]


def _sum(before: fx.Node, scores: Scores) -> Any:
    total = None
    for kind, node, number in scores.masks:
        mask = node
        if kind == "add" and number != 1:
            mask = computed(before, aten.mul.Tensor, (node, number))
        elif kind != "add":
            hidden = node if kind == "fill" else computed(before, aten.logical_not.default, (node,))
            mask = computed(before, aten.where.Scalar, (hidden, number, 0.0))
        if scores.split is not None and len(sizes(mask) or ()) == 3:
            mask = _mask_apart(before, mask, scores.split)
        total = mask if total is None else computed(before, aten.add.Tensor, (total, mask))
    return total


def _mask_apart(before: fx.Node, mask: Any, split: Any) -> Any:
    """Return a mask [B·H, …] as [B, H, …]; one for all heads, [1, …], broadcasts as it is."""
    if (sizes(mask) or (None,))[0] == 1:
        return computed(before, aten.unsqueeze.default, (mask, 0))
    rest = [computed(before, aten.sym_size.int, (mask, axis)) for axis in (1, 2)]
    return computed(before, aten.reshape.default, (mask, [*split.args[1][:2], *rest]))


def _merge_reshapes(node: Any) -> None:
    """Let reshapes of a reshape read what that one reads, and go where they give its shape."""
    for user in list(node.users) if node.target is aten.reshape.default else ():
        if user.target is aten.reshape.default:
            edit.set_argument(user, 0, node.args[0])
            if same_shape(user, node.args[0]):
                edit.replace(user, node.args[0])


def _group(node: fx.Node) -> bool:
    """Give an attention once the heads that its keys and values are repeated from."""
    args: Any = node.args
    if node.kwargs["enable_gqa"] or len(sizes(args[0]) or ()) != 4:
        return False
    key, value = unrepeated(args[1], args[2])
    if key is args[1]:
        return False
    substitute(node, SDPA, (args[0], key, value, *args[3:]), {**node.kwargs, "enable_gqa": True})
    return True
