"""The example inputs of a capture: bound to the model's forward, checked, and widened where a size of 1 would stick."""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, get_args, is_typeddict

import torch
from torch import Tensor, fx, nn

from fxquant.errors import InputError, suggest
from fxquant.graph import structure
from fxquant.graph.calling import Parameter, name_arguments


@dataclass(frozen=True)
class Example:
    """Example inputs taken apart.

    Invariants:
        - `inputs` is the structure of a dict from argument names to values; its leaves are `tensors`, called `names`.
        - the tensors are distinct objects, outside autograd, and belong to the example.
    """

    parameters: tuple[Parameter, ...]
    inputs: structure.Data
    names: tuple[str, ...]
    tensors: tuple[Tensor, ...]

    def arguments(self, leaves: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
        """Return the positional and the keyword arguments of forward for these leaves."""
        named = structure.build(self.inputs, leaves)
        spread = any(p.kind == "VAR_POSITIONAL" and p.name in named for p in self.parameters)
        args: list[Any] = []
        for parameter in self.parameters:
            if parameter.name in named and parameter.kind == "VAR_POSITIONAL":
                args += named.pop(parameter.name)
            elif parameter.name in named and (
                parameter.kind == "POSITIONAL_ONLY" or (spread and parameter.kind == "POSITIONAL_OR_KEYWORD")
            ):
                args.append(named.pop(parameter.name))
        return args, named

    def widened(self) -> Self:
        """Return the example with two rows for one, and two tokens for one; itself where it has more of both.

        A batch of one is a batch where every tensor has one row; a single token is a column of integers.
        """
        one_row = all(t.shape[0] == 1 for t in self.tensors if t.ndim)
        wide = tuple(_widen(t, one_row) for t in self.tensors)
        return self if all(a is b for a, b in zip(wide, self.tensors, strict=True)) else replace(self, tensors=wide)


def _widen(tensor: Tensor, one_row: bool) -> Tensor:
    times = [1] * tensor.ndim
    if tensor.ndim and one_row:
        times[0] = 2
    if tensor.ndim == 2 and tensor.shape[1] == 1 and not tensor.is_floating_point():
        times[1] = 2
    return tensor.repeat(times) if 2 in times else tensor


def read_example(model: nn.Module, given: Any) -> Example:
    """Bind example inputs (a dict of keyword arguments, a tuple or list of positional ones, or a tensor) to forward.

    Raises:
        InputError: no tensors; an argument that forward does not have or needs; a tensor that is empty or requires
            grad; a value that is no tensor, constant or container of these.
    """
    parameters = forward_parameters(model)
    named = _named(parameters, given, _extra_names(model))
    leaves: list[Tensor] = []
    items = []
    for name, value in named.items():
        found, data = structure.describe(value, f"example_inputs[{name!r}]")
        leaves += found
        items.append(data)
    inputs = {"kind": "dict", "keys": list(named), "items": items}
    names = tuple(structure.names(inputs))
    for name, tensor in zip(names, leaves, strict=True):
        _check_tensor(name, tensor)
    if not leaves:
        raise InputError(
            f"example_inputs holds no tensor: expected those of forward({_known(parameters)}); numbers and lists of "
            'them are constants, and a tokenizer makes tensors with return_tensors="pt"'
        )
    return Example(parameters, inputs, names, tuple(tensor.detach().clone() for tensor in leaves))


def forward_parameters(model: nn.Module) -> tuple[Parameter, ...]:
    """Return the parameters of the model's forward."""
    found = []
    for position, each in enumerate(inspect.signature(model.forward).parameters.values()):
        kind = "POSITIONAL_ONLY" if position < _positional(model) else each.kind.name
        plain = isinstance(each.default, structure.CONSTANTS) and not (
            isinstance(each.default, float) and not math.isfinite(each.default)
        )
        required = each.default is each.empty and not each.kind.name.startswith("VAR_")
        found.append(Parameter(each.name, kind, required, each.default if plain else None))
    return tuple(found)


def _positional(model: nn.Module) -> int:
    """Return how many arguments the module of an exported program takes by position alone, as it was exported with."""
    codegen = getattr(getattr(model, "graph", None), "_codegen", None)
    if not isinstance(codegen, fx.graph._PyTreeCodeGen):
        return 0
    spec = codegen.pytree_info.in_spec
    return spec.child(0).num_children if spec.num_children == 2 else 0


def _extra_names(model: nn.Module) -> frozenset[str] | None:
    """Return the names that forward's `**kwargs` take: those of its TypedDict, else None for any."""
    for each in inspect.signature(model.forward).parameters.values():
        if each.kind is each.VAR_KEYWORD:
            inner = get_args(each.annotation)
            # Transformers' decorators take return_dict out before forward, whose TypedDict does not have it.
            return frozenset({*inner[0].__annotations__, "return_dict"}) if inner and is_typeddict(inner[0]) else None
    return frozenset()


def _named(parameters: tuple[Parameter, ...], given: Any, extra: frozenset[str] | None) -> dict[str, Any]:
    """Return the arguments by name, in the order of the parameters."""
    if isinstance(given, Tensor):
        given = (given,)
    if isinstance(given, Mapping):
        named = dict(given)
    elif isinstance(given, tuple | list):
        named = name_arguments(parameters, tuple(given), {}, f"forward({_known(parameters)})")
    else:
        expected = "a dict of keyword arguments, a tuple of positional ones, or a tensor"
        raise InputError(f"example_inputs is a {type(given).__name__}: expected {expected}")
    names = [parameter.name for parameter in parameters]
    known = {*names, *(extra or ())} - {parameter.name for parameter in parameters if parameter.kind.startswith("VAR_")}
    # Positional arguments were named by the parameters themselves, `*inputs` among them.
    for name in named if isinstance(given, Mapping) else ():
        if not isinstance(name, str) or (name not in known and extra is not None):
            raise InputError(f"example_inputs has {name!r}, which forward does not take; {suggest(name, known)}")
    for parameter in parameters:
        if parameter.required and parameter.name not in named:
            raise InputError(f"example_inputs lacks {parameter.name!r}: forward({_known(parameters)}) needs it")
    return {name: named[name] for name in sorted(named, key=lambda name: (*names, name).index(name))}


def _known(parameters: Sequence[Parameter]) -> str:
    return ", ".join(parameter.name for parameter in parameters if not parameter.kind.startswith("VAR_"))


def _check_tensor(name: str, tensor: Tensor) -> None:
    if tensor.requires_grad:
        raise InputError(f"example input {name!r} requires grad: give {name}.detach()")
    if tensor.numel() == 0:
        raise InputError(
            f"example input {name!r} has shape {tuple(tensor.shape)}, which is empty: give at least one row"
        )
    if tensor.is_floating_point() and not tensor.is_meta and bool(torch.isnan(tensor).any()):
        raise InputError(f"example input {name!r} contains NaN")
