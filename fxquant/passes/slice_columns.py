"""Parts of a tensor along its last axis → slices of it, each a call of its own that others can take in.

A gate and its up, or query, key and value, come from one linear as items of a `chunk` or a `split`. As slices they are
columns of the linear's result, which row programs and kernels of attention read where they are.
"""

import operator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from fxquant.graph import edit

aten = torch.ops.aten


@dataclass(frozen=True)
class SliceColumns:
    """Replace items of splits along the last axis, of a known size, by slices. Exact."""

    name: ClassVar[str] = "slice_columns"
    after: ClassVar[tuple[str, ...]] = ("lower",)

    def apply(self, gm: fx.GraphModule) -> int:
        """Return how many items became slices."""
        count = 0
        for node in gm.graph.find_nodes(op="call_function", target=operator.getitem):
            split, place = node.args
            ends = _ends(split)
            if ends is not None:
                with gm.graph.inserting_before(node):
                    args = (split.args[0], -1, ends[place], ends[place + 1], 1)
                    part = edit.call(gm.graph, aten.slice.Tensor, args, like=node, value=edit.info(node))
                part.meta |= {key: value for key, value in node.meta.items() if key == "val"}
                edit.replace(node, part)
                count += 1
        if count:
            edit.sweep(gm)
        return count


def _ends(split: Any) -> list[int] | None:
    """Return where the parts of a split along the last axis begin, and behind them where the last ends."""
    reader = PARTS.get(split.target)
    known = edit.info(split.args[0]) if reader is not None else None
    if reader is None or known is None or known.dynamic[-1] or split.args[2] not in (-1, len(known.shape) - 1):
        return None
    width = known.shape[-1]
    sizes = reader(width, split.args[1])
    return None if sizes is None else [min(sum(sizes[:place]), width) for place in range(len(sizes) + 1)]


def _in_steps(width: int, size: Any) -> list[int] | None:
    return [size] * -(-width // size) if isinstance(size, int) and size > 0 else None


PARTS: dict[Any, Any] = {
    aten.chunk.default: lambda width, count: _in_steps(width, -(-width // count)),
    aten.split.Tensor: _in_steps,
    aten.split_with_sizes.default: lambda width, sizes: list(sizes) if all(isinstance(x, int) for x in sizes) else None,
}
