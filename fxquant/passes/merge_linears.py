"""Linear kernels that read the same activations become one: attention's query, key and value, a gate and its up.

The activations are then quantized and read once, and one product of N₁+N₂+… columns runs instead of several. Each
column's arithmetic is as before, so the results are equal to the bit. Kernels that know of activated columns also take
linears with an activation and such without; theirs may end within a block, which its columns of padding fill up.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, ClassVar

import torch
from torch import Tensor, fx
from torch.nn import functional

from fxquant.graph import edit
from fxquant.graph.edit import TensorInfo, marks
from fxquant.kernels import layout
from fxquant.passes.claims import hand_over

SLICE = torch.ops.aten.slice.Tensor
# Kernel arguments that have a place for each column, along their first axis.
PER_COLUMN = ("weight", "packed", "weight_scale", "weight_zero_point", "weight_sum", "bias")
COLUMNS = "columns"  # an argument that counts them
ACTIVATED = "activated"  # one that says how many of them, from the first on, have the activation
BLOCK = 64  # columns of a packed weight that stand together
# Kernel arguments that belong to one result alone: a kernel that is given one of them is left as it is.
OWN = ("residual", "out_scale")
# Kernels of other packages that have not all of these are left alone.
NEEDED = {"weight_scale", "bias", "activation"}


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
        merged = [group for nodes in groups.values() for group in _by_activation(nodes) if len(group) > 1]
        for group in merged:
            _merge(gm, group)
        edit.sweep(gm)
        return sum(len(group) - 1 for group in merged)


def _arguments(node: fx.Node) -> dict[str, Any]:
    """Return the arguments of a kernel call by their names in its schema; another package may leave defaults out."""
    assert isinstance(node.target, torch._ops.OpOverload)
    return {argument.name: value for argument, value in zip(node.target._schema.arguments, node.args, strict=False)}


def _key(gm: fx.GraphModule, node: fx.Node) -> Any:
    """Return what two kernels must have in common to be merged; None for what cannot be."""
    claimed = marks(node).get("claim", {}).get("op", "")
    if node.op != "call_function" or not claimed.startswith("linear") or "lowered" not in marks(node):
        return None
    given = _arguments(node)
    if not given.keys() >= NEEDED or (claimed != "linear" and ACTIVATED not in given):
        return None
    if any(given.get(name) is not None for name in OWN) or not _whole_blocks(gm, given):
        return None
    apart = (*PER_COLUMN, COLUMNS, *(("activation",) if ACTIVATED in given else ()))
    shared = tuple(value for name, value in given.items() if name not in apart)
    return node.target, shared, given.get("weight_zero_point") is None, _dtype(gm, given["bias"])


def _by_activation(nodes: list[fx.Node]) -> Iterator[list[fx.Node]]:
    """Yield what one kernel can compute: linears with one activation and, behind them, those with none."""
    found: dict[str, list[fx.Node]] = {}
    for node in nodes:
        found.setdefault(_arguments(node)["activation"], []).append(node)
    plain = found.pop("none", [])
    first, *others = list(found.values()) or [[]]
    yield from ([*first, *plain], *others)


def _whole_blocks(gm: fx.GraphModule, given: dict[str, Any]) -> bool:
    """Say whether each column has scales of its own and, where a packed weight has to fill its blocks, it does."""
    names = ("weight_scale", "weight_zero_point")
    if any(edit.get_tensor(gm, given[name]).ndim == 0 for name in names if given.get(name) is not None):
        return False
    return "packed" not in given or COLUMNS in given or _width(gm, given) % BLOCK == 0


def _width(gm: fx.GraphModule, given: dict[str, Any]) -> int:
    """Return how many columns a linear has."""
    return given[COLUMNS] if COLUMNS in given else len(edit.get_tensor(gm, given["weight_scale"]))


def _dtype(gm: fx.GraphModule, bias: Any) -> Any:
    return edit.get_tensor(gm, bias).dtype if edit.is_constant(bias) else bias


def _room(gm: fx.GraphModule, given: dict[str, Any]) -> int:
    """Return how many columns of the merged kernel a linear takes: where they are counted apart, whole blocks."""
    width = _width(gm, given)
    return -(-width // BLOCK) * BLOCK if COLUMNS in given else width


def _merge(gm: fx.GraphModule, group: list[fx.Node]) -> None:
    first = next(node for node in gm.graph.nodes if node in group)
    calls = [_arguments(node) for node in group]
    parent = edit.path_of(first).rpartition(".")[0]
    joined = {
        name: edit.add_constant(gm, f"{parent}.merged_{name}".lstrip("."), _joined(gm, calls, name), first)
        for name, value in calls[0].items()
        if name in PER_COLUMN and value is not None
    }
    for name, constant in joined.items():
        layout.join(gm, [call[name] for call in calls], constant)
    rooms = [_room(gm, call) for call in calls]
    args = tuple((calls[0] | joined | _counts(calls, rooms)).values())
    with gm.graph.inserting_before(first):
        merged = edit.call(gm.graph, first.target, args, like=first, value=_wide(first, sum(rooms)))
        edit.mark(merged, path=parent or None)
        for node, call, start in zip(group, calls, accumulate(rooms, initial=0), strict=False):
            end = start + _width(gm, call)
            part = edit.call(gm.graph, SLICE, (merged, -1, start, end, 1), like=node, value=edit.info(node))
            part.meta |= {key: value for key, value in node.meta.items() if key == "val"}
            node.replace_all_uses_with(part)
    hand_over([node for node in gm.graph.nodes if node in group], merged)
    for node in group:
        gm.graph.erase_node(node)


def _counts(calls: list[dict[str, Any]], rooms: list[int]) -> dict[str, int]:
    """Return the arguments of a merged kernel that count its columns, where it has such."""
    if COLUMNS not in calls[0]:
        return {}
    activated = sum(room for call, room in zip(calls, rooms, strict=True) if call["activation"] != "none")
    return {COLUMNS: sum(rooms)} | ({ACTIVATED: activated} if 0 < activated < sum(rooms) else {})


def _joined(gm: fx.GraphModule, calls: list[dict[str, Any]], name: str) -> Tensor:
    """Return the constants of several linears as one, a bias filled up to the room of its linear."""
    found = [edit.get_tensor(gm, call[name]) for call in calls]
    if name == "bias":
        found = [
            functional.pad(bias, (0, _room(gm, call) - len(bias))) for bias, call in zip(found, calls, strict=True)
        ]
    return torch.cat(found)


def _wide(node: fx.Node, width: int) -> TensorInfo | None:
    known = edit.info(node)
    return TensorInfo(known.dtype, (*known.shape[:-1], width), known.dynamic) if known else None
