"""Queries, keys and values are written in bfloat16 where attention rounds them to that anyway.

They are the widest results that leave a row program, and all that attention reads: half the bytes. The keys are rounded
once more than otherwise, since attention multiplies them by its scale before it rounds.
"""

import operator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from fxquant.graph import edit
from fxquant.kernels.x86 import native
from fxquant.kernels.x86.row_program import steps
from fxquant.passes.fuse_attention import ATTENTION
from fxquant.passes.fuse_rows import ROW_PROGRAM

BFLOAT16_ISA = "avx512_bf16"  # whose attention multiplies bfloat16
LINEARS = ("linear", "linear_bytes")
PROGRAM = 2  # the argument of a row program


@dataclass(frozen=True)
class NarrowAttention:
    """Let row programs return bfloat16 to attention where nothing else reads what they return."""

    name: ClassVar[str] = "narrow_attention"
    after: ClassVar[tuple[str, ...]] = ("fuse_rows", "simplify_masks", "unpad")

    def apply(self, gm: fx.GraphModule) -> int:
        """Return how many results became bfloat16; none on a CPU whose attention multiplies float32."""
        if not native.available() or native.use_isa("") != BFLOAT16_ISA:
            return 0
        readers = [node for node in gm.graph.nodes if node.target is ATTENTION and all(map(_is_free, _heads(node)))]
        found = dict.fromkeys(value for node in readers for value in _heads(node))
        narrow = [value for value in found if set(value.users) <= set(readers)]
        # Attention takes all of its operands in one dtype.
        kept = [value for value in narrow if all(set(_heads(user)) <= set(narrow) for user in value.users)]
        for value in kept:
            _narrow(value)
        return len(kept)


def _heads(attention: fx.Node) -> list[fx.Node]:
    """Return query, key and value, or the one node that holds all three."""
    return [value for value in attention.args[:3] if isinstance(value, fx.Node)]


def _is_free(value: fx.Node) -> bool:
    """Say whether `value` is what a linear of a row program returns, and no other step of the program reads it."""
    if value.target is not operator.getitem or value.args[0].target is not ROW_PROGRAM:  # type: ignore[union-attr]
        return False
    program, index = value.args
    lines = dict(steps(str(program.args[PROGRAM])))  # type: ignore[union-attr]
    name = lines.pop("return")[int(index)]  # type: ignore[call-overload]
    return name in lines and lines[name][0] in LINEARS and not any(name in words for words in lines.values())


def _narrow(value: fx.Node) -> None:
    program, index = value.args
    text, _, results = str(program.args[PROGRAM]).rpartition("return ")  # type: ignore[union-attr]
    words = results.split()
    words[int(index)] += ":bfloat16"  # type: ignore[call-overload]
    edit.set_argument(program, PROGRAM, f"{text}return {' '.join(words)}")  # type: ignore[arg-type]
    known = edit.info(value)
    assert known is not None, "an item of a row program is a tensor"
    if "val" in value.meta:
        value.meta["val"] = value.meta["val"].to(torch.bfloat16)
    edit.mark(value, value=edit.TensorInfo(torch.bfloat16, known.shape, known.dynamic).to_dict())
