"""Linears whose results attention alone reads write them in bfloat16, to which it rounds them anyway.

Half the bytes pass through memory, and attention's results are the same.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from fxquant.graph import edit
from fxquant.passes.fuse_attention import ATTENTION

GEMM = torch.ops.fxquant.int8_gemm.default
OUT_SCALE, OUT_DTYPE = 9, 13  # arguments of the linear
OPERANDS = 3  # of attention: query, key and value come first


@dataclass(frozen=True)
class NarrowProducts:
    """Let 8-bit linears return bfloat16 to attention where nothing else reads what they return."""

    name: ClassVar[str] = "narrow_products"
    after: ClassVar[tuple[str, ...]] = ("fuse_attention", "simplify_masks", "unpad")

    def apply(self, gm: fx.GraphModule) -> int:
        """Return how many linears return bfloat16 now."""
        count = 0
        for node in gm.graph.find_nodes(op="call_function", target=GEMM):
            plain = node.args[OUT_SCALE] is None and node.args[OUT_DTYPE] is torch.float32
            if plain and _attended(node):
                _narrow(node)
                count += 1
        return count


def _attended(node: fx.Node) -> bool:
    """Say whether attention, and nobody else, reads a value as query, key or value, beside its sizes."""
    readers = [user for user in node.users if user.target is not torch.ops.aten.sym_size.int]
    return bool(readers) and all(
        user.target is ATTENTION and node in user.args[:OPERANDS] and node not in user.args[OPERANDS:]
        for user in readers
    )


def _narrow(node: fx.Node) -> None:
    known = edit.info(node)
    edit.set_argument(node, OUT_DTYPE, torch.bfloat16)
    if known is not None:
        edit.mark(node, value=edit.TensorInfo(torch.bfloat16, known.shape, known.dynamic).to_dict())
    if isinstance(node.meta.get("val"), torch.Tensor):
        node.meta["val"] = node.meta["val"].to(torch.bfloat16)
