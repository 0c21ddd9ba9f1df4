"""A linear takes any number of leading axes: flattening them before and restoring them after it does nothing.

    reshape(linear(reshape(x, [-1, K]), weight, bias), [*x.shape[:-1], N])  =  linear(x, weight, bias)

as GPT-2's Conv1D does.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from fxquant.graph import edit
from fxquant.passes.canonical_facts import sizes, take_type

aten = torch.ops.aten


@dataclass(frozen=True)
class LiftFlattening:
    """Drop the reshapes around a linear where the leading axes provably come back as they were. Exact.

    The linear stays the node it is, with its module path.
    """

    name: ClassVar[str] = "lift_flattening"
    after: ClassVar[tuple[str, ...]] = ("products_to_linear", "fold_bias")

    def apply(self, gm: fx.GraphModule) -> int:
        count = sum(_lift(node) for node in list(gm.graph.nodes) if node.target is aten.reshape.default)
        if count:
            gm.graph.eliminate_dead_code()
        return count


def _lift(restored: fx.Node) -> bool:
    linear = restored.args[0]
    if not isinstance(linear, fx.Node) or linear.target is not aten.linear.default or len(linear.users) != 1:
        return False
    flat = linear.args[0]
    if not isinstance(flat, fx.Node) or flat.target is not aten.reshape.default:
        return False
    x = flat.args[0]
    before, made, after = (sizes(node) for node in (x, linear, restored))
    if not (before and made and after):
        return False
    # As many rows come back as x has, so a row of the product was a row of x.
    if made[-1] != after[-1] or before[:-1] != after[:-1]:
        return False
    edit.set_argument(linear, 0, x)
    take_type(linear, restored)
    edit.replace(restored, linear)
    return True
