"""Test vectors: values for the roles of an op, from which a model of that op alone is made."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxquant.graph.pattern import Pattern


@dataclass(frozen=True)
class Sizes:
    """How large a test vector is: `rows` of activations, `inner` values along their last axis, `columns` of results."""

    rows: int = 6
    inner: int = 32
    columns: int = 16


@dataclass(frozen=True)
class Vector:
    """Values for a pattern: `inputs` come with each call, `parameters` are the model's own, `literals` its options.

    An optional role that has no value is absent.
    """

    inputs: Mapping[str, Tensor]
    parameters: Mapping[str, Tensor] = field(default_factory=dict)
    literals: Mapping[str, Any] = field(default_factory=dict)


Example = Callable[[Sizes], Vector]


def normal(*shape: int) -> Tensor:
    """Return normally distributed values (float32), the same for the same shape."""
    generator = torch.Generator().manual_seed(sum(size * 31**place for place, size in enumerate(shape, 1)))
    return torch.randn(shape, generator=generator)


def alone(pattern: Pattern, vector: Vector) -> fx.GraphModule:
    """Return a module that computes a pattern and nothing else; it is called with `vector.inputs` by name."""
    root, graph = nn.Module(), fx.Graph()
    for role, value in vector.parameters.items():
        root.register_buffer(role, value)
    values: dict[fx.Node, Any] = {}
    for node in pattern.anchor.graph.nodes:
        if node.op != "placeholder":
            values[node] = graph.node_copy(node, lambda each: values[each])
        elif node.name in vector.inputs:
            values[node] = graph.placeholder(node.name)
        elif node.name in vector.parameters:
            values[node] = graph.get_attr(node.name)
        else:
            values[node] = vector.literals.get(node.name)
    graph.output(values[pattern.anchor])
    return fx.GraphModule(root, graph).eval()
