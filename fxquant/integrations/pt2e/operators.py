"""The operators of the `quantized_decomposed` namespace in a graph: which a node calls, and with what."""

import importlib
from typing import Any

import torch
from torch import fx

from fxquant.graph.arguments import spell_out

NAMESPACE = "quantized_decomposed"


def decomposed() -> Any:
    """Return the namespace of the operators, which torch registers where they are defined."""
    importlib.import_module("torch.ao.quantization.fx._decomposed")
    return torch.ops.quantized_decomposed


def called(node: fx.Node) -> str | None:
    """Return the operator that a node calls, as in "quantize_per_tensor", whatever its overload; None for others."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != NAMESPACE:
        return None
    return target._schema.name.partition("::")[2]


def named_arguments(node: fx.Node) -> dict[str, Any]:
    """Return the arguments of a call by their names in its schema, with the defaults of those that are not given."""
    assert isinstance(node.target, torch._ops.OpOverload)
    args, kwargs = spell_out(node.target, node.args, dict(node.kwargs))
    names = [argument.name for argument in node.target._schema.arguments if not argument.kwarg_only]
    return {**dict(zip(names, args, strict=True)), **kwargs}
