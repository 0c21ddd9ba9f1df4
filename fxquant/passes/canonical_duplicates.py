"""One node for each value: what is read or computed twice from the same arguments is read or computed once."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from fxquant.graph import edit
from fxquant.passes.canonical_facts import has_mutation


@dataclass(frozen=True)
class MergeDuplicates:
    """Read every tensor in one place, first of all nodes, and compute equal calls once. Exact.

    Two names of one tensor count as one. Calls of random operators are never merged, and no calls at all where some
    node writes to a tensor.
    """

    name: ClassVar[str] = "merge_duplicates"
    after: ClassVar[tuple[str, ...]] = ("normalize_arguments", "functionalize", "remove_noops")

    def apply(self, gm: fx.GraphModule) -> int:
        count = _merge_reads(gm)
        return count if has_mutation(gm) else count + _merge_calls(gm)


def _merge_reads(gm: fx.GraphModule) -> int:
    body = next(node for node in gm.graph.nodes if node.op != "get_attr")
    seen: dict[int, fx.Node] = {}
    at_top = True
    count = 0
    for node in list(gm.graph.nodes):
        at_top = at_top and node is not body
        if node.op != "get_attr":
            continue
        read: Any = gm
        for part in str(node.target).split("."):
            read = getattr(read, part)
        first = seen.setdefault(id(read), node)
        if first is not node:
            edit.replace(node, first)
            count += 1
        elif not at_top:
            body.prepend(node)
    return count


def _merge_calls(gm: fx.GraphModule) -> int:
    seen: dict[Any, fx.Node] = {}
    count = 0
    for node in list(gm.graph.nodes):
        if node.op != "call_function" or not _is_repeatable(node.target):
            continue
        first = seen.setdefault((node.target, _key(node.args), _key(node.kwargs)), node)
        if first is not node:
            edit.replace(node, first)
            count += 1
    return count


def _is_repeatable(target: Any) -> bool:
    if isinstance(target, torch._ops.OpOverload):
        return target.namespace == "aten" and torch.Tag.nondeterministic_seeded not in target.tags
    return getattr(target, "__module__", "") == "_operator"


def _key(value: Any) -> Any:
    """Return something hashable that is equal for equal arguments only: 1, 1.0 and True differ."""
    if isinstance(value, (list, tuple)):
        return (type(value).__name__, *(_key(each) for each in value))
    if isinstance(value, dict):
        return tuple((name, _key(each)) for name, each in value.items())
    return value if isinstance(value, fx.Node) else (type(value), repr(value))
