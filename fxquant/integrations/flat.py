"""A graph as torch's exporter takes it: flat tensors in and out, with names, example inputs and sizes that vary."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import Dim

from fxquant.graph import edit, structure
from fxquant.graph.calling import Leaf
from fxquant.graph.signature import signature_of, without_signature


@dataclass(frozen=True)
class Flat:
    """A graph without its signature: `inputs` names its placeholders, `outputs` what it returns."""

    module: fx.GraphModule
    inputs: tuple[Leaf, ...]
    outputs: tuple[str, ...]
    example: tuple[Tensor, ...]

    @property
    def call(self) -> str:
        """How it is called, and what it returns, in a line."""
        return f"called as ({', '.join(leaf.name for leaf in self.inputs)}) → ({', '.join(self.outputs)})"

    @property
    def sizes(self) -> tuple[dict[int, Any], ...]:
        """Which sizes of each input vary, as torch.export takes it."""
        return tuple(
            {axis: Dim.AUTO for axis, size in enumerate(leaf.shape) if isinstance(size, str)} for leaf in self.inputs
        )


def flattened(gm: fx.GraphModule) -> Flat:
    """Return a graph that is called with the tensors alone, and shares them with `gm`."""
    signature = signature_of(gm)
    flat = without_signature(gm)
    inputs = [node for node in flat.graph.nodes if node.op == "placeholder"]
    example = tuple(_example(node, leaf) for node, leaf in zip(inputs, signature.leaves, strict=True))
    outputs = tuple(name or f"output_{place}" for place, name in enumerate(structure.names(signature.outputs)))
    return Flat(flat, signature.leaves, outputs, example)


def _example(node: fx.Node, leaf: Leaf) -> Tensor:
    known = edit.info(node)
    assert known is not None, "capture knows its inputs"
    # a size of 1 that may vary would be taken as fixed
    shape = [
        max(size, 2) if isinstance(given, str) else size for size, given in zip(known.shape, leaf.shape, strict=True)
    ]
    return torch.zeros(shape, dtype=known.dtype)
