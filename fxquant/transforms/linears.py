"""Linears that read one tensor as one linear and slices of its result, and back."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from fxquant.graph import edit
from fxquant.graph.edit import TensorInfo
from fxquant.passes.canonical_facts import call_like, take_type
from fxquant.transforms.base import Miss, Rewrite, Transformation, miss

aten = torch.ops.aten
_FACT = "merged"  # of a merged linear: the tensors that were joined
_PART = "part"  # of a slice of it: which of them


@dataclass(frozen=True)
class MergeLinears(Transformation):
    """Rewrite linears on one input, such as query, key and value, into one linear [ΣN, K] whose result is cut.

    Each output is the same sum of products; a kernel for another width may add them up in another order.
    """

    name: ClassVar[str] = "merge_float_linears"

    def sites(self, gm: fx.GraphModule) -> Iterator[Rewrite | Miss]:
        """Yield every group of linears on one input."""
        groups: dict[fx.Node, list[fx.Node]] = {}
        for node in gm.graph.nodes:
            if node.target is aten.linear.default:
                groups.setdefault(node.args[0], []).append(node)
        for group in groups.values():
            kinds: dict[Any, list[fx.Node]] = {}
            for node in group if len(group) > 1 else ():
                reason = _obstacle(node)
                if reason is not None:
                    yield miss(node, reason)
                else:
                    kinds.setdefault(_kind(gm, node), []).append(node)
            for nodes in kinds.values():
                if len(nodes) > 1:
                    yield partial(_merge, gm, nodes)
                elif len(kinds) > 1:
                    yield miss(
                        nodes[0], "it alone of the linears on its input has a bias, has none, or is of its dtype"
                    )

    def inverse(self) -> "SplitLinears":
        """Return what takes the linears apart."""
        return SplitLinears()


@dataclass(frozen=True)
class SplitLinears(Transformation):
    """Restore the linears that `MergeLinears` merged, with their tensors under their names."""

    name: ClassVar[str] = "split_float_linears"

    def sites(self, gm: fx.GraphModule) -> Iterator[Rewrite | Miss]:
        """Yield every merged linear."""
        for node in list(gm.graph.nodes):
            if node.target is aten.linear.default and _FACT in edit.marks(node):
                strange = [user for user in node.users if _PART not in edit.marks(user)]
                yield miss(node, f"%{strange[0].name} reads all of it") if strange else partial(_split, gm, node)

    def inverse(self) -> MergeLinears:
        """Return what merges linears."""
        return MergeLinears()


def _obstacle(node: fx.Node) -> str | None:
    for value in node.args[1:]:
        if value is not None and not edit.is_constant(value):
            return f"{value} is no constant"
    return None


def _kind(gm: fx.GraphModule, node: fx.Node) -> Any:
    """Return what linears must have in common to be merged."""
    weight, bias = node.args[1:]
    assert isinstance(weight, fx.Node), "a site's weight is a constant"
    return edit.get_tensor(gm, weight).dtype, bias is None


def _merge(gm: fx.GraphModule, nodes: list[fx.Node]) -> None:
    first = nodes[0]
    parent = edit.path_of(first).rpartition(".")[0]
    operands: list[fx.Node | None] = []
    for at, name in ((1, "weight"), (2, "bias")):
        parts = [node.args[at] for node in nodes]
        tensors = [edit.get_tensor(gm, part) for part in parts if isinstance(part, fx.Node)]
        wanted = f"{parent}.merged_{name}".lstrip(".")
        operands.append(edit.add_constant(gm, wanted, torch.cat(tensors), first) if tensors else None)
    widths = [len(edit.get_tensor(gm, node.args[1])) for node in nodes]  # type: ignore[arg-type]
    with gm.graph.inserting_before(first):
        args = (first.args[0], *operands)
        merged = edit.call(gm.graph, aten.linear.default, args, like=first, value=_wide(first, sum(widths)))
    edit.mark(merged, path=parent or None, **{_FACT: [_names(node) for node in nodes]})
    for index, (node, end) in enumerate(zip(nodes, accumulate(widths), strict=True)):
        cut = call_like(node, aten.slice.Tensor, (merged, -1, end - widths[index], end, 1))
        edit.mark(cut, **{_PART: index})
        edit.replace(node, cut)


def _names(node: fx.Node) -> list[str | None]:
    """Return the names of a linear's weight and bias."""
    return [str(value.target) if isinstance(value, fx.Node) else None for value in node.args[1:]]


def _split(gm: fx.GraphModule, merged: fx.Node) -> None:
    for cut in sorted(merged.users):
        names, (_, _, start, end, _) = edit.marks(merged)[_FACT][edit.marks(cut)[_PART]], cut.args
        operands: list[fx.Node | None] = []
        for value, name in zip(merged.args[1:], names, strict=True):
            whole = edit.get_tensor(gm, value) if isinstance(value, fx.Node) else None
            part = None if whole is None else whole[start:end].clone()
            operands.append(None if part is None else _constant(gm, name, part, merged))
        edit.mark(cut, **{_PART: None})
        linear = call_like(cut, aten.linear.default, (merged.args[0], *operands))
        take_type(linear, cut)
        edit.replace(cut, linear)


def _constant(gm: fx.GraphModule, name: str, tensor: Tensor, before: fx.Node) -> fx.Node:
    """Return a node for a tensor by its name: one that something else still reads, or a new one."""
    found: list[fx.Node] = gm.graph.find_nodes(op="get_attr", target=name)
    if found and torch.equal(edit.get_tensor(gm, found[0]), tensor):
        before.prepend(found[0])
        return found[0]
    return edit.add_constant(gm, name, tensor, before)


def _wide(node: fx.Node, width: int) -> TensorInfo | None:
    known = edit.info(node)
    return TensorInfo(known.dtype, (*known.shape[:-1], width), known.dynamic) if known else None
