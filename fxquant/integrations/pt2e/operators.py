"""The operators of `quantized_decomposed`, and torchao's affine ones, in a graph: which a node calls, with what."""

import importlib
from typing import Any

import torch
from torch import fx

from fxquant.graph.arguments import spell_out
from fxquant.integrations.pt2e import affine

NAMESPACE = "quantized_decomposed"


def decomposed() -> Any:
    """Return the namespace of the operators, which torch registers where they are defined."""
    importlib.import_module("torch.ao.quantization.fx._decomposed")
    return torch.ops.quantized_decomposed


def called(node: fx.Node) -> str | None:
    """Return the operator that a node calls, as in "quantize_per_tensor", whatever its overload; None for others."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return None
    name = target._schema.name.partition("::")[2]
    known = target.namespace == NAMESPACE or (target.namespace == affine.NAMESPACE and "_affine" in name)
    return name if known else None


def named_arguments(node: fx.Node) -> dict[str, Any]:
    """Return the arguments of a call by their names in its schema, with the defaults of those that are not given.

    Those of torchao's operators have the names that `quantized_decomposed` has for the same.

    Raises:
        CaptureError: an operator of torchao that has none.
    """
    assert isinstance(node.target, torch._ops.OpOverload)
    args, kwargs = spell_out(node.target, node.args, dict(node.kwargs))
    names = [argument.name for argument in node.target._schema.arguments if not argument.kwarg_only]
    given = {**dict(zip(names, args, strict=True)), **kwargs}
    if node.target.namespace == affine.NAMESPACE:
        return affine.in_common_words(str(called(node)), given)
    return given
