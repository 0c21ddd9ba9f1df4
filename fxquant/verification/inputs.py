"""Inputs for a graph that comes without any: of the shapes that it was captured with, from a seed."""

import torch
from torch import Tensor, fx

from fxquant.graph import edit
from fxquant.ops.base import read_constant
from fxquant.ops.shape import MOVES_VALUES

EMBEDDING = torch.ops.aten.embedding.default
_CASTS = (torch.ops.aten.to.dtype, torch.ops.aten._to_copy.default)


def generated_inputs(gm: fx.GraphModule, seed: int = 0) -> tuple[Tensor, ...]:
    """Return a tensor for each input of a graph, as its call would give them.

    Floats are normally distributed; integers that a table is read by are any of its rows; other integers, as those of
    masks, are 1, and booleans true.
    """
    generator = torch.Generator().manual_seed(seed)
    return tuple(_value(node, generator) for node in gm.graph.find_nodes(op="placeholder"))


def _value(node: fx.Node, generator: torch.Generator) -> Tensor:
    known = edit.info(node)
    assert known is not None, "inputs of a captured graph are described"
    if known.dtype.is_floating_point:
        return torch.randn(known.shape, generator=generator).to(known.dtype)
    rows = [_rows(user) for user in _reached(node) if user.target is EMBEDDING]
    if known.dtype is torch.bool or not rows:
        return torch.ones(known.shape, dtype=known.dtype)
    return torch.randint(min(rows), known.shape, generator=generator).to(known.dtype)


def _rows(embedding: fx.Node) -> int:
    table = read_constant(embedding.args[0])  # type: ignore[arg-type]
    known = edit.info(table) if table is not None else None
    return known.shape[0] if known is not None else 2


def _reached(node: fx.Node) -> set[fx.Node]:
    """Return the nodes that read a value as it is, moved or cast."""
    found: set[fx.Node] = set()
    waiting = [node]
    while waiting:
        for user in waiting.pop().users:
            if user not in found:
                found.add(user)
                if user.target in MOVES_VALUES or user.target in _CASTS:
                    waiting.append(user)
    return found
