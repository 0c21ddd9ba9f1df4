"""One operator for each meaning, where ATen has several.

- another shape: `view`, `_unsafe_view`, `view_as`, `reshape_as` become `reshape`, which works for any strides
- a change of dtype alone: every `to`, `_to_copy` and `type_as` becomes `to.dtype`
- a transposed matrix: `t`, `numpy_T` of two dimensions become `transpose(0, 1)`
- a matrix product: `mm`, `bmm` become `matmul`
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from fxquant.graph import edit
from fxquant.passes.canonical_facts import dtype_of, has_mutation, sizes, substitute

aten = torch.ops.aten

Respelled = tuple[Any, tuple[Any, ...]]
Speller = Callable[[fx.Node], Respelled | None]


@dataclass(frozen=True)
class UnifySpelling:
    """Rewrite calls into the one spelling of what they compute. Exact.

    A cast keeps its spelling in a graph that writes to tensors, for it might be asked for its copy.
    """

    name: ClassVar[str] = "unify_spelling"
    after: ClassVar[tuple[str, ...]] = ("normalize_arguments", "functionalize")

    def apply(self, gm: fx.GraphModule) -> int:
        spellers = SPELLERS if has_mutation(gm) else {**SPELLERS, **CASTS}
        count = 0
        for node in list(gm.graph.nodes):
            found = spellers[node.target](node) if node.op == "call_function" and node.target in spellers else None
            if found is not None:
                substitute(node, *found)
                count += 1
        return count


def _reshape(node: fx.Node) -> Respelled:
    return aten.reshape.default, (node.args[0], node.args[1])


def _reshape_as(node: fx.Node) -> Respelled | None:
    found = sizes(node)
    static = found is not None and all(isinstance(size, int) for size in found)
    return (aten.reshape.default, (node.args[0], list(found))) if found is not None and static else None


def _transpose(node: fx.Node) -> Respelled | None:
    return (aten.transpose.int, (node.args[0], 0, 1)) if len(sizes(node) or ()) == 2 else None


def _matmul(node: fx.Node) -> Respelled:
    return aten.matmul.default, (node.args[0], node.args[1])


def _cast(node: fx.Node) -> Respelled | None:
    """Spell a cast to the device and layout that the tensor has already: what is left is its dtype."""
    args = (node.args[0], dtype_of(node), False, False, None)
    if dtype_of(node) is None or (node.target is not aten.to.dtype and not _stays_in_place(node)):
        return None
    return (aten.to.dtype, args) if (node.target, node.args) != (aten.to.dtype, args) else None


def _stays_in_place(node: fx.Node) -> bool:
    before, after = edit.arguments(node)[0].meta.get("val"), node.meta.get("val")
    if not isinstance(before, Tensor) or not isinstance(after, Tensor):
        return False
    return (before.device, before.layout) == (after.device, after.layout)


SPELLERS: dict[Any, Speller] = {
    aten.view.default: _reshape,
    aten._unsafe_view.default: _reshape,
    aten.view_as.default: _reshape_as,
    aten.reshape_as.default: _reshape_as,
    aten.t.default: _transpose,
    aten.numpy_T.default: _transpose,
    aten.mm.default: _matmul,
    aten.bmm.default: _matmul,
}
CASTS: dict[Any, Speller] = {
    aten.to.dtype: _cast,
    aten.to.device: _cast,
    aten.to.dtype_layout: _cast,
    aten.to.other: _cast,
    aten._to_copy.default: _cast,
    aten.type_as.default: _cast,
}
