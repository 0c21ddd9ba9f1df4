"""A convolution whose kernel is as large as its stride reads every value once: a linear on patches (ViT, CLIP).

    conv2d(x [B, C, H, W], w [N, C, P, Q], b, stride (P, Q))  =  linear(patches [B, H/P, W/Q, C·P·Q], w [N, C·P·Q], b)

with the result's axes put back as the convolution has them. So a patch is a token, with a scale of its own where
activations are quantized at run time.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from fxquant.graph import edit
from fxquant.passes.canonical_facts import computed, sizes, substitute

aten = torch.ops.aten
CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)


@dataclass(frozen=True)
class PatchesToLinear:
    """Rewrite convolutions of patches that do not overlap into linears. The same products, maybe in another order.

    Only where patches fill a known size: of another a convolution leaves out what is behind the last patch. A kernel of
    one place stays a convolution here, which keeps the axes of what reads it.
    """

    name: ClassVar[str] = "patches_to_linear"
    after: ClassVar[tuple[str, ...]] = ("normalize_arguments", "unify_spelling", "remove_noops", "fold_batch_norms")

    def apply(self, gm: fx.GraphModule) -> int:
        matrices: dict[str, fx.Node] = {}
        found = [node for node in gm.graph.nodes if node.target in CONVOLUTIONS and _reads_once(node)]
        for node in found:
            _rewrite(gm, node, matrices)
        if found:
            gm.graph.eliminate_dead_code()
        return len(found)


def _reads_once(node: fx.Node) -> bool:
    """Say whether patches lie side by side and fill the input."""
    x, weight, _, stride, padding, dilation, groups = node.args
    shape, known = sizes(x), sizes(weight)
    if shape is None or known is None or not edit.is_constant(weight) or len(shape) != len(known) or groups != 1:
        return False
    kernel = list(known[2:])
    if any(padding) or any(step != 1 for step in dilation) or list(stride) != kernel or max(kernel) == 1:  # type: ignore[arg-type, union-attr]
        return False
    return all(isinstance(size, int) and size % side == 0 for size, side in zip(shape[2:], kernel, strict=True))


def _rewrite(gm: fx.GraphModule, node: fx.Node, matrices: dict[str, fx.Node]) -> None:
    x, weight, bias = node.args[:3]
    shape: Any = sizes(x)
    _, channels, *kernel = edit.get_tensor(gm, weight).shape  # type: ignore[arg-type]
    counts = [size // side for size, side in zip(shape[2:], kernel, strict=True)]
    axes = len(kernel)
    apart = [each for pair in zip(counts, kernel, strict=True) for each in pair]
    split = computed(node, aten.reshape.default, (x, [-1, channels, *apart]))
    # [B, C, n, P, m, Q] → [B, n, m, C, P, Q]
    order = [0, *range(2, 2 + 2 * axes, 2), 1, *range(3, 3 + 2 * axes, 2)]
    moved = computed(node, aten.permute.default, (split, order))
    patches = computed(node, aten.flatten.using_ints, (moved, 1 + axes, -1))
    product = computed(node, aten.linear.default, (patches, _matrix(gm, weight, matrices), bias))
    substitute(node, aten.permute.default, (product, [0, 1 + axes, *range(1, 1 + axes)]))


def _matrix(gm: fx.GraphModule, weight: Any, made: dict[str, fx.Node]) -> fx.Node:
    """Return the constant [N, C·P·Q] of a weight, stored when first asked for."""
    name = str(weight.target)
    if name not in made:
        made[name] = edit.add_constant(gm, f"{name}_matrix", edit.get_tensor(gm, weight).detach().flatten(1), weight)
    return made[name]
