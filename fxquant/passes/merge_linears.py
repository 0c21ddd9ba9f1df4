"""Linear kernels that read the same activations become one: attention's query, key and value, a gate and its up.

The activations are then quantized and read once, and one product of N₁+N₂+… columns runs instead of several. Each
column's arithmetic is as before, so the results are equal to the bit.
"""

from dataclasses import dataclass
from itertools import accumulate
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from fxquant.graph import edit
from fxquant.graph.edit import TensorInfo, marks
from fxquant.passes.claims import hand_over

SLICE = torch.ops.aten.slice.Tensor
# Kernel arguments that have a place for each column, along their first axis.
PER_COLUMN = ("weight", "packed", "weight_scale", "weight_zero_point", "weight_sum", "bias")
COLUMNS = "columns"  # an argument that counts them
BLOCK = 64  # columns of a packed weight that stand together
# Kernel arguments that belong to one result alone: a kernel that is given one of them is left as it is.
OWN = ("residual", "out_scale")


@dataclass(frozen=True)
class MergeLinears:
    """Merge kernels of one kind with equal inputs and options; each former result is a slice of the merged one."""

    name: ClassVar[str] = "merge_linears"
    after: ClassVar[tuple[str, ...]] = ("lower",)

    def apply(self, gm: fx.GraphModule) -> int:
        """Return how many kernels were merged into others."""
        groups: dict[Any, list[fx.Node]] = {}
        for node in gm.graph.nodes:
            key = _key(gm, node)
            if key is not None:
                groups.setdefault(key, []).append(node)
        merged = [group for group in groups.values() if len(group) > 1]
        for group in merged:
            _merge(gm, group)
        edit.sweep(gm)
        return sum(len(group) - 1 for group in merged)


def _arguments(node: fx.Node) -> dict[str, Any]:
    """Return the arguments of a kernel call by their names in its schema."""
    assert isinstance(node.target, torch._ops.OpOverload)
    return {argument.name: value for argument, value in zip(node.target._schema.arguments, node.args, strict=True)}


def _key(gm: fx.GraphModule, node: fx.Node) -> Any:
    """Return what two kernels must have in common to be merged; None for what cannot be."""
    if node.op != "call_function" or marks(node).get("claim", {}).get("op") != "linear" or "lowered" not in marks(node):
        return None
    given = _arguments(node)
    if any(given.get(name) is not None for name in OWN) or not _whole_blocks(gm, given):
        return None
    shared = tuple(value for name, value in given.items() if name not in (*PER_COLUMN, COLUMNS))
    return node.target, shared, given.get("weight_zero_point") is None, _dtype(gm, given["bias"])


def _whole_blocks(gm: fx.GraphModule, given: dict[str, Any]) -> bool:
    """Say whether each column has scales of its own and, where the weight is packed, none is padding."""
    names = ("weight_scale", "weight_zero_point")
    if any(edit.get_tensor(gm, given[name]).ndim == 0 for name in names if given.get(name) is not None):
        return False
    return "packed" not in given or _width(gm, given) % BLOCK == 0


def _width(gm: fx.GraphModule, given: dict[str, Any]) -> int:
    """Return how many columns a linear has."""
    return given[COLUMNS] if COLUMNS in given else len(edit.get_tensor(gm, given["weight_scale"]))


def _dtype(gm: fx.GraphModule, bias: Any) -> Any:
    return edit.get_tensor(gm, bias).dtype if edit.is_constant(bias) else bias


def _merge(gm: fx.GraphModule, group: list[fx.Node]) -> None:
    first = group[0]
    calls = [_arguments(node) for node in group]
    parent = edit.path_of(first).rpartition(".")[0]
    joined = {
        name: edit.add_constant(gm, f"{parent}.merged_{name}".lstrip("."), _joined(gm, calls, name), first)
        for name, value in calls[0].items()
        if name in PER_COLUMN and value is not None
    }
    widths = [_width(gm, call) for call in calls]
    total = {COLUMNS: sum(widths)} if COLUMNS in calls[0] else {}
    args = tuple((calls[0] | joined | total).values())
    with gm.graph.inserting_before(first):
        merged = edit.call(gm.graph, first.target, args, like=first, value=_wide(first, sum(widths)))
        edit.mark(merged, path=parent or None)
        ends = list(accumulate(widths))
        for node, width, end in zip(group, widths, ends, strict=True):
            part = edit.call(gm.graph, SLICE, (merged, -1, end - width, end, 1), like=node, value=edit.info(node))
            part.meta |= {key: value for key, value in node.meta.items() if key == "val"}
            node.replace_all_uses_with(part)
    hand_over(group, merged)
    for node in group:
        gm.graph.erase_node(node)


def _joined(gm: fx.GraphModule, calls: list[dict[str, Any]], name: str) -> Tensor:
    return torch.cat([edit.get_tensor(gm, call[name]) for call in calls])


def _wide(node: fx.Node, width: int) -> TensorInfo | None:
    known = edit.info(node)
    return TensorInfo(known.dtype, (*known.shape[:-1], width), known.dynamic) if known else None
