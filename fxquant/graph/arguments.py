"""One spelling for the arguments of an ATen call, so that a pattern never misses by a default that was written out."""

from typing import Any

import torch


def spell_out(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments with every schema default filled in.

    Positional schema arguments come positionally, keyword-only ones by name, both in schema order. A target that is
    no `OpOverload` keeps its arguments as they are.
    """
    if not isinstance(target, torch._ops.OpOverload):
        return args, dict(kwargs)
    positional: list[Any] = []
    named: dict[str, Any] = {}
    for index, argument in enumerate(target._schema.arguments):
        if index < len(args):
            value = args[index]
        elif argument.name in kwargs:
            value = kwargs[argument.name]
        else:
            value = argument.default_value
        if argument.kwarg_only:
            named[argument.name] = value
        else:
            positional.append(value)
    return tuple(positional), named
