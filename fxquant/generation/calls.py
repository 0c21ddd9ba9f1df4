"""What the calls of a model's generation code are bound to, and how a mistake in them is told."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fxquant.errors import InputError
from fxquant.graph import structure
from fxquant.graph.calling import Parameter, python_signature

# How models count positions that they are not given, from the mask of all tokens, (batch, total), and the first token
# that they are asked of: by place, or without padding. Both give (batch, total − first).
POSITIONS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "place": lambda mask, first: torch.arange(first, mask.shape[1], device=mask.device).expand(mask.shape[0], -1),
    "mask": lambda mask, first: (mask.cumsum(-1) * mask - 1)[:, first:],
}


def parameters(data: Sequence[Mapping[str, Any]]) -> tuple[Parameter, ...]:
    """Return the parameters of a model's forward, from data."""
    return tuple(Parameter(**each) for each in data)


def signature(own: Sequence[Parameter]) -> inspect.Signature:
    """Return the signature, without self, of what stands for a forward: transformers asks what a forward takes."""
    full = python_signature(own)
    return full.replace(parameters=list(full.parameters.values())[1:])


def ids(given: dict[str, Any], name: str) -> Tensor:
    """Take the ids called `name`, (batch, sequence), out of the arguments.

    Raises:
        InputError: they are missing, or of another shape.
    """
    found = given.pop(name, None)
    if not isinstance(found, Tensor) or found.ndim != 2:
        raise InputError(f"{name} are {_kind(found)}: expected a tensor of token ids (batch, sequence)")
    return found


def mask(given: dict[str, Any], name: str, like: Tensor, length: int) -> Tensor:
    """Take the mask called `name`, (batch of `like`, length), out of the arguments: ones where there is none.

    Raises:
        InputError: it has another shape.
    """
    found, shape = given.pop(name, None), (like.shape[0], length)
    if found is None:
        return torch.ones(shape, dtype=torch.long, device=like.device)
    if not isinstance(found, Tensor) or tuple(found.shape) != shape:
        raise InputError(f"{name} is {_kind(found)}: expected a tensor of shape {shape}, past tokens first")
    return found.to(torch.long)


def positions(found: Any, ids: Tensor, mask: Tensor, default: str) -> Tensor:
    """Return the positions of ids, (batch, sequence): those found, else by an entry of `POSITIONS`.

    Raises:
        InputError: they have another shape.
    """
    if found is None:
        return POSITIONS[default](mask, mask.shape[1] - ids.shape[1])
    if not isinstance(found, Tensor) or found.ndim != 2 or found.shape[1] != ids.shape[1]:
        raise InputError(f"position_ids are {_kind(found)}: expected a tensor of the shape of input_ids")
    return found.expand(ids.shape)


def refuse(given: Mapping[str, Any], known: str) -> None:
    """Raise `InputError` for an argument that is left, unless it asks for nothing."""
    for name, value in given.items():
        if value is not None and value is not False and not (name == "return_dict" and value):
            raise InputError(f"unexpected argument {name!r}: the steps of the program take {known}")


def output(cls: str, fields: Mapping[str, Any]) -> Any:
    """Return the ModelOutput called `cls` with these fields."""
    return _builder(cls, tuple(fields))(list(fields.values()))


@functools.cache
def _builder(cls: str, keys: tuple[str, ...]) -> Callable[[list[Any]], Any]:
    items = [{"kind": "leaf"}] * len(keys)
    return structure.builder({"kind": "output", "class": cls, "keys": list(keys), "items": items})


def _kind(value: object) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
