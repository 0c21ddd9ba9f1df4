"""Arithmetic on small constants, done once: Gemma's 1 + w, DeBERTa's √d."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from fxquant.graph import edit

aten = torch.ops.aten

# IEEE 754 asks for the correctly rounded result of each of these: they are the same bits on every machine.
EXACTLY_ROUNDED = {
    aten.add.Tensor,
    aten.sub.Tensor,
    aten.mul.Tensor,
    aten.div.Tensor,
    aten.neg.default,
    aten.sqrt.default,
    aten.to.dtype,
}


@dataclass(frozen=True)
class FoldConstants:
    """Replace a call that reads nothing but parameters and buffers of at most one dimension by its result.

    The result is a buffer, named after the first tensor read; gradients no longer reach that tensor. Exact.
    """

    name: ClassVar[str] = "fold_constants"
    after: ClassVar[tuple[str, ...]] = ("normalize_arguments", "unify_spelling", "remove_noops", "merge_duplicates")

    def apply(self, gm: fx.GraphModule) -> int:
        count = 0
        for node in list(gm.graph.nodes):
            if node.op == "call_function" and node.target in EXACTLY_ROUNDED and _reads_small_constants(gm, node):
                _fold(gm, node)
                count += 1
        return count


def _reads_small_constants(gm: fx.GraphModule, node: fx.Node) -> bool:
    inputs = node.all_input_nodes
    return bool(inputs) and all(edit.is_constant(each) and edit.get_tensor(gm, each).ndim <= 1 for each in inputs)


def _fold(gm: fx.GraphModule, node: fx.Node) -> None:
    def read(value: Any) -> Any:
        return edit.get_tensor(gm, value) if isinstance(value, fx.Node) else value

    assert isinstance(node.target, torch._ops.OpOverload)
    with torch.no_grad():
        result = node.target(*(read(value) for value in node.args), **node.kwargs)
    source = node.all_input_nodes[0]
    name = f"{source.target}_{node.target._schema.name.rpartition('::')[2]}"
    edit.replace(node, edit.add_constant(gm, name, result, before=source))
