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
from fxquant.kernels.cpu import native
from fxquant.kernels.cpu.row_program import steps
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
        narrow = {value for value in found if _readers(value) <= set(readers)}
        # Attention takes all of its operands in one dtype.
        mixed = {user for user in readers if not narrow.issuperset(_heads(user))}
        kept = [value for value in found if value in narrow and not _readers(value) & mixed]
        for value in kept:
            _narrow(value)
        return len(kept)


def _heads(attention: fx.Node) -> list[fx.Node]:
    """Return query, key and value, or the one node that holds all three."""
    return [value for value in attention.args[:3] if isinstance(value, fx.Node)]


def _readers(value: fx.Node) -> set[fx.Node]:
    """Return who reads the numbers of a value, and not its size alone."""
    return {user for user in value.users if user.target is not torch.ops.aten.sym_size.int}


def _is_free(value: fx.Node) -> bool:
    """Say whether `value` is what a linear of a row program returns, and no other step of the program reads it."""
    source = value.args[0] if value.target is operator.getitem else None
    if not isinstance(source, fx.Node) or source.target is not ROW_PROGRAM:
        return False
    lines = dict(steps(_program_of(value)[1]))
    name = lines.pop("return")[_index_of(value)]
    return name in lines and lines[name][0] in LINEARS and not any(name in words for words in lines.values())


def _program_of(value: fx.Node) -> tuple[fx.Node, str]:
    """Return the row program that a value is an item of, and its text."""
    node = value.args[0]
    assert isinstance(node, fx.Node), "an item is read of a node"
    return node, str(node.args[PROGRAM])


def _index_of(value: fx.Node) -> int:
    index = value.args[1]
    assert isinstance(index, int), "an item of a list has a number"
    return index


def _narrow(value: fx.Node) -> None:
    node, program = _program_of(value)
    text, _, results = program.rpartition("return ")
    words = results.split()
    words[_index_of(value)] += ":bfloat16"
    edit.set_argument(node, PROGRAM, f"{text}return {' '.join(words)}")
    known = edit.info(value)
    assert known is not None, "an item of a row program is a tensor"
    if "val" in value.meta:
        value.meta["val"] = value.meta["val"].to(torch.bfloat16)
    edit.mark(value, value=edit.TensorInfo(torch.bfloat16, known.shape, known.dynamic).to_dict())
