"""Weights that a graph computes from parameters alone, made once: slices of a merged weight, weight norms, casts.

nn.MultiheadAttention cuts the weights of query, key and value from one, wav2vec 2.0 normalises that of its positional
convolution at every call, and a router may cast its own. A rule can claim an op only where its weight is a constant.
"""

import operator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxquant.graph import edit

aten = torch.ops.aten

# Ops that read a weight and a bias as their second and third arguments.
READERS = {aten.linear.default, aten.conv1d.default, aten.conv2d.default, aten.conv3d.default}
# What is computed of parameters here gives the same bits as in the graph.
MAKERS = {
    operator.getitem,
    aten._weight_norm.default,
    aten.cat.default,
    aten.chunk.default,
    aten.reshape.default,
    aten.select.int,
    aten.slice.Tensor,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.squeeze.dim,
    aten.to.dtype,
    aten.unbind.int,
    aten.unsqueeze.default,
}


@dataclass(frozen=True)
class FoldWeights:
    """Replace weights and biases that are computed from parameters by constants. Exact.

    Slices share the memory of what they were cut from, where they are whole rows of it.
    """

    name: ClassVar[str] = "fold_weights"
    after: ClassVar[tuple[str, ...]] = ("normalize_arguments", "unify_spelling", "remove_noops", "merge_duplicates")

    def apply(self, gm: fx.GraphModule) -> int:
        made: dict[fx.Node, fx.Node] = {}
        count = 0
        for node in list(gm.graph.nodes):
            for index in (1, 2) if node.target in READERS else ():
                weight = node.args[index]
                if isinstance(weight, fx.Node) and not edit.is_constant(weight):
                    constant = made.get(weight) or _fold(gm, weight)
                    if constant is not None:
                        made[weight] = constant
                        edit.set_argument(node, index, constant)
                        count += 1
        if count:
            gm.graph.eliminate_dead_code()
        return count


def _fold(gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Return a constant of what a node computes from constants alone, or None."""
    sources: list[fx.Node] = []
    value = _value(gm, node, sources)
    if not isinstance(value, Tensor):
        return None
    return edit.add_constant(gm, f"{sources[0].target}_part", value.contiguous(), sources[0])


def _value(gm: fx.GraphModule, node: fx.Node, sources: list[fx.Node]) -> Any:
    """Return what a node computes, None where it reads an input or is no maker; note the constants that it reads."""
    if edit.is_constant(node):
        sources.append(node)
        return edit.get_tensor(gm, node).detach()
    if node.op != "call_function" or node.target not in MAKERS:
        return None
    inputs = {each: _value(gm, each, sources) for each in node.all_input_nodes}
    if any(value is None for value in inputs.values()):
        return None
    args, kwargs = pytree.tree_map_only(fx.Node, inputs.__getitem__, (node.args, dict(node.kwargs)))
    assert callable(node.target)
    with torch.no_grad():
        return node.target(*args, **kwargs)
