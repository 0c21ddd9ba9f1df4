"""A convolution over one axis whose kernel is one place wide is a linear at every place (SqueezeBERT).

    conv1d(x [B, C, S], w [N, C, 1], b)  =  transpose(linear(transpose(x, 1, 2), w [N, C], b), 1, 2)

and two transposes that undo each other go.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from fxquant.graph import edit
from fxquant.passes.canonical_facts import computed, sizes, substitute

aten = torch.ops.aten


@dataclass(frozen=True)
class PointwiseToLinear:
    """Rewrite convolutions of kernel one into linears. The same products are summed, maybe in another order."""

    name: ClassVar[str] = "pointwise_to_linear"
    after: ClassVar[tuple[str, ...]] = ("normalize_arguments", "unify_spelling", "remove_noops", "fold_weights")

    def apply(self, gm: fx.GraphModule) -> int:
        weights: dict[str, fx.Node] = {}
        count = sum(_rewrite(gm, node, weights) for node in list(gm.graph.nodes) if node.target is aten.conv1d.default)
        if count:
            for node in list(gm.graph.nodes):
                _cancel(node)
            gm.graph.eliminate_dead_code()
        return count


def _rewrite(gm: fx.GraphModule, node: fx.Node, weights: dict[str, fx.Node]) -> bool:
    x, weight, bias, stride, padding, dilation, groups = node.args
    plain = (stride, padding, dilation, groups) == ([1], [0], [1], 1)
    if not plain or not edit.is_constant(weight) or len(sizes(x) or ()) != 3:
        return False
    assert isinstance(weight, fx.Node)
    tensor, name = edit.get_tensor(gm, weight), str(weight.target)
    if tensor.shape[2] != 1:
        return False
    if name not in weights:
        weights[name] = edit.add_constant(gm, f"{name}_matrix", tensor.detach()[:, :, 0], weight)
    rows = computed(node, aten.transpose.int, (x, 1, 2))
    product = computed(node, aten.linear.default, (rows, weights[name], bias))
    substitute(node, aten.transpose.int, (product, 1, 2))
    return True


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
