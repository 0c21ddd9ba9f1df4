"""A convolution over one axis whose kernel is one place wide is a linear at every place (SqueezeBERT).

    conv1d(x [B, C, S], w [N, C, 1], b)  =  transpose(linear(transpose(x, 1, 2), w [N, C], b), 1, 2)

and two transposes that undo each other go. Where channels are in groups, so are the linears: each on its columns of x.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from fxquant.graph import edit
from fxquant.passes.canonical_facts import computed, sizes, substitute

aten = torch.ops.aten

# Channels of a group below which the calls of so many linears would cost more than what they save.
NARROWEST = 8


@dataclass(frozen=True)
class PointwiseToLinear:
    """Rewrite convolutions of kernel one into linears. The same products are summed, maybe in another order."""

    name: ClassVar[str] = "pointwise_to_linear"
    after: ClassVar[tuple[str, ...]] = ("normalize_arguments", "unify_spelling", "remove_noops", "fold_weights")

    def apply(self, gm: fx.GraphModule) -> int:
        weights: dict[str, list[fx.Node]] = {}
        count = sum(_rewrite(gm, node, weights) for node in list(gm.graph.nodes) if node.target is aten.conv1d.default)
        if count:
            for node in list(gm.graph.nodes):
                _cancel(node)
            gm.graph.eliminate_dead_code()
        return count


def _rewrite(gm: fx.GraphModule, node: fx.Node, weights: dict[str, list[fx.Node]]) -> bool:
    x, weight, bias, stride, padding, dilation, groups = node.args
    plain = (stride, padding, dilation) == ([1], [0], [1])
    if not plain or not edit.is_constant(weight) or len(sizes(x) or ()) != 3:
        return False
    assert isinstance(weight, fx.Node) and isinstance(groups, int)
    shape = edit.get_tensor(gm, weight).shape
    if shape[2] != 1 or (groups > 1 and min(shape[0] // groups, shape[1]) < NARROWEST):
        return False
    if groups > 1 and bias is not None and not edit.is_constant(bias):
        return False
    rows = computed(node, aten.transpose.int, (x, 1, 2))
    matrices = _parts(gm, weight, groups, "matrix", weights)
    biases = _parts(gm, bias, groups, "part", weights) if groups > 1 and isinstance(bias, fx.Node) else [bias] * groups
    products = [
        computed(node, aten.linear.default, (_columns(node, rows, place, groups, shape[1]), matrix, vector))
        for place, (matrix, vector) in enumerate(zip(matrices, biases, strict=True))
    ]
    product = products[0] if groups == 1 else computed(node, aten.cat.default, (products, -1))
    substitute(node, aten.transpose.int, (product, 1, 2))
    return True


def _parts(
    gm: fx.GraphModule, source: fx.Node, groups: int, suffix: str, made: dict[str, list[fx.Node]]
) -> list[fx.Node]:
    """Return the constants that the groups read of a weight [N, C, 1] or a bias [N], stored when first asked for."""
    name = str(source.target)
    if name not in made:
        tensor = edit.get_tensor(gm, source).detach()
        parts = (tensor[:, :, 0] if tensor.ndim == 3 else tensor).chunk(groups)
        made[name] = [edit.add_constant(gm, f"{name}_{suffix}", part, source) for part in parts]
    return made[name]


def _columns(node: fx.Node, rows: Any, place: int, groups: int, width: int) -> Any:
    """Return the columns of a group."""
    if groups == 1:
        return rows
    return computed(node, aten.slice.Tensor, (rows, 2, place * width, (place + 1) * width, 1))


def _cancel(node: Any) -> None:
    """Let readers of a transpose of a transpose read what that one reads, where together they change nothing."""
    if _swaps(node) and _swaps(node.args[0]):
        edit.replace(node, node.args[0].args[0])


def _swaps(node: Any) -> bool:
    """Say whether a node swaps the last two of three axes."""
    if not isinstance(node, fx.Node) or node.op != "call_function" or len(sizes(node) or ()) != 3:
        return False
    if node.target is aten.transpose.int:
        return {axis % 3 for axis in edit.arguments(node)[1:]} == {1, 2}
    return node.target is aten.permute.default and [axis % 3 for axis in edit.arguments(node)[1]] == [0, 2, 1]
