"""Linears that read the same value become one product of all their columns: attention's query, key and value."""

import operator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from fxquant.graph import edit
from fxquant.graph.edit import TensorInfo
from fxquant.integrations.substitutions import note
from fxquant.passes.qdq_nodes import DEQUANTIZE, DEQUANTIZE_GROUPS, UNPACK_INT4

aten = torch.ops.aten


@dataclass(frozen=True)
class MergeProducts:
    """linear(x, w₁, b₁), linear(x, w₂, b₂) → split(linear(x, [w₁ w₂], [b₁ b₂])). Same numbers.

    A runtime reads and packs its activations once, and one wide product costs less than narrow ones. Weights are
    merged that nothing else reads and that have scales of the same kind, for each row or for groups of a row.
    """

    name: ClassVar[str] = "merge_products"
    after: ClassVar[tuple[str, ...]] = ()

    def apply(self, gm: fx.GraphModule) -> int:
        """Return how many linears were merged into others."""
        groups: dict[Any, list[fx.Node]] = {}
        for node in gm.graph.nodes:
            key = _key(node) if node.target is aten.linear.default else None
            if key is not None:
                groups.setdefault(key, []).append(node)
        merged = [group for group in groups.values() if len(group) > 1]
        for group in merged:
            _merge(gm, group)
        edit.sweep(gm)
        return sum(len(group) - 1 for group in merged)


def _key(linear: fx.Node) -> Any:
    """Return what linears must have in common to be merged; None for one that cannot be."""
    x, weight, bias = linear.args
    if not isinstance(weight, fx.Node) or weight.target not in (DEQUANTIZE, DEQUANTIZE_GROUPS):
        return None
    q, scale, zero_point, scheme = weight.args
    if len(weight.users) > 1 or not (bias is None or edit.is_constant(bias)):
        return None
    by_row = weight.target is DEQUANTIZE_GROUPS or scheme == 0
    known = edit.info(scale) if isinstance(scale, fx.Node) else None
    zeros = edit.info(zero_point) if isinstance(zero_point, fx.Node) else None
    if not by_row or known is None or zeros is None:
        return None
    packing = q.args[1:] if isinstance(q, fx.Node) and q.target is UNPACK_INT4 else None
    return x, weight.target, scheme, packing, str(edit.marks(weight).get("spec")), len(zeros.shape)


def _merge(gm: fx.GraphModule, group: list[fx.Node]) -> None:
    first = group[0]
    infos = [edit.info(node) for node in group]
    columns = [known.shape[-1] for known in infos if known is not None]
    assert len(columns) == len(group), "capture knows every tensor"
    whole = TensorInfo(torch.float32, (*infos[0].shape[:-1], sum(columns)), infos[0].dynamic)  # type: ignore[union-attr]
    weight = _joined_weight(gm, [node.args[1] for node in group], first)  # type: ignore[misc]
    bias = _joined_bias(gm, group, columns)
    with gm.graph.inserting_before(first):
        args = (first.args[0], weight, bias)
        product = edit.call(gm.graph, first.target, args, like=first, value=whole)
        parts = edit.call(gm.graph, aten.split_with_sizes.default, (product, columns, -1), like=first)
        own = [
            edit.call(gm.graph, operator.getitem, (parts, place), like=node, value=edit.info(node))
            for place, node in enumerate(group)
        ]
    for node, part in zip(group, own, strict=True):
        if node is not first:
            note(gm, node, "merged product", "columns of one product with others that read the same value", exact=True)
        edit.replace(node, part)


def _joined_weight(gm: fx.GraphModule, weights: list[fx.Node], before: fx.Node) -> fx.Node:
    """Return a dequantize of all rows of some weights, put before a node."""
    q, scale, zero_point, scheme = weights[0].args
    assert isinstance(q, fx.Node) and isinstance(zero_point, fx.Node)
    if q.target is UNPACK_INT4:
        packed = _joined(gm, [each.args[0].args[0] for each in weights], before)  # type: ignore[union-attr]
        with gm.graph.inserting_before(before):
            integers = edit.call(gm.graph, UNPACK_INT4, (packed, *q.args[1:]), like=before)
    else:
        integers = _joined(gm, [each.args[0] for each in weights], before)
    scale = _joined(gm, [each.args[1] for each in weights], before)
    known = edit.info(zero_point)
    if known is not None and known.shape:
        zero_point = _joined(gm, [each.args[2] for each in weights], before)
    with gm.graph.inserting_before(before):
        new = edit.call(gm.graph, weights[0].target, (integers, scale, zero_point, scheme), like=before)
    edit.mark(new, spec=edit.marks(weights[0]).get("spec"))
    return new


def _joined(gm: fx.GraphModule, nodes: list[Any], before: fx.Node) -> fx.Node:
    """Return constants joined along their first axis."""
    tensors = [edit.get_tensor(gm, node) for node in nodes]
    return edit.add_constant(gm, f"{nodes[0].target}_merged", torch.cat(tensors), before)


def _joined_bias(gm: fx.GraphModule, group: list[fx.Node], columns: list[int]) -> fx.Node | None:
    """Return the biases as one, zeros for a linear without; None where no linear has one."""
    given = [node.args[2] for node in group]
    named = next((each for each in given if isinstance(each, fx.Node)), None)
    if named is None:
        return None
    tensors = [
        edit.get_tensor(gm, each) if isinstance(each, fx.Node) else torch.zeros(size)
        for each, size in zip(given, columns, strict=True)
    ]
    return edit.add_constant(gm, f"{named.target}_merged", torch.cat(tensors), group[0])
