"""Spell out the arguments of every ATen call, so that no pattern misses by a default that was, or was not, written."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from fxquant.graph.arguments import spell_out


@dataclass(frozen=True)
class NormalizeArguments:
    """Give every ATen call all its schema's arguments: positional ones positionally, keyword-only ones by name.

    A list argument of fixed length given as one number becomes a list. Exact: the calls are the same calls.
    """

    name: ClassVar[str] = "normalize_arguments"
    after: ClassVar[tuple[str, ...]] = ()

    def apply(self, gm: fx.GraphModule) -> int:
        return sum(_normalize(node) for node in gm.graph.nodes if node.op == "call_function" and _is_aten(node.target))


def _is_aten(target: Any) -> bool:
    return isinstance(target, torch._ops.OpOverload) and target.namespace == "aten"


def _normalize(node: fx.Node) -> bool:
    assert isinstance(node.target, torch._ops.OpOverload)
    schema = node.target._schema.arguments
    args, kwargs = spell_out(node.target, node.args, dict(node.kwargs))
    args = tuple(_as_list(value, argument) for value, argument in zip(args, schema, strict=False))
    if args == node.args and list(kwargs.items()) == list(node.kwargs.items()):
        return False
    node.args, node.kwargs = args, kwargs
    return True


def _as_list(value: Any, argument: Any) -> Any:
    """`argument.N` is the length that a schema such as `int[2] stride` states."""
    is_number = isinstance(value, (int, fx.Node)) and not isinstance(value, bool)
    return [value] * argument.N if argument.N and is_number and "List[int]" in str(argument.type) else value
