"""Binding a call to what a graph was captured with, and checking it; a mistake is an `InputError` that names it."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from fxquant.errors import InputError, suggest
from fxquant.graph import guards, structure


@dataclass(frozen=True)
class Parameter:
    """A parameter of the model's forward.

    `kind` is the name of an `inspect` kind; `default` is the parameter's default where that is a constant, else None.
    """

    name: str
    kind: str = "POSITIONAL_OR_KEYWORD"
    required: bool = True
    default: bool | int | float | str | None = None


@dataclass(frozen=True)
class Leaf:
    """A tensor input: a size is an int where it is fixed, and the name of a symbol where it may vary.

    Dimensions with the same symbol have the same size in each call.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Limits:
    """What the sizes of a call must obey besides the shapes of the leaves.

    `ranges` gives the smallest and the largest size (None: any) of symbols that are not free; `conditions` are the
    trees of graph/guards.py that neither shapes nor ranges state.
    """

    ranges: Mapping[str, tuple[int, int | None]]
    conditions: tuple[guards.Tree, ...]
    _tests: tuple[Callable[[guards.Shapes], int], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_tests", tuple(map(guards.compiled, self.conditions)))

    def hold(self, shapes: guards.Shapes) -> bool:
        """Say whether all conditions hold for these shapes; one that divides by zero does not."""
        try:
            return all(test(shapes) for test in self._tests)
        except ZeroDivisionError:
            return False


def python_signature(parameters: Sequence[Parameter]) -> inspect.Signature:
    """Return the signature, `self` included; ValueError or AttributeError for what Python would not accept."""
    own = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)]
    for each in parameters:
        kind = getattr(inspect.Parameter, each.kind)
        required = each.required or each.kind.startswith("VAR_")
        own.append(inspect.Parameter(each.name, kind, default=inspect.Parameter.empty if required else each.default))
    return inspect.Signature(own)


def read_call(batch: object) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the call that a batch is: a dict of keyword arguments, a tuple or list of positional ones, or a tensor.

    Raises:
        InputError: the batch is of another type; the text goes on after its name.
    """
    if isinstance(batch, Mapping) and all(isinstance(key, str) for key in batch):
        return (), dict(batch)
    if isinstance(batch, tuple | list):
        return tuple(batch), {}
    if isinstance(batch, Tensor):
        return (batch,), {}
    wanted = "a dict of keyword arguments, a tuple or list of positional ones, or a tensor"
    raise InputError(f"is {type(batch).__name__}: expected {wanted}")


def name_arguments(
    parameters: Sequence[Parameter], args: tuple[Any, ...], kwargs: Mapping[str, Any], known: str
) -> dict[str, Any]:
    """Name the positional arguments of a call as the model's forward would; those of `*rest` are one tuple, `rest`."""
    named: dict[str, Any] = {}
    for parameter in parameters:
        if parameter.kind == "VAR_POSITIONAL" and len(args) > len(named):
            named[parameter.name] = args[len(named) :]
            break
        if parameter.kind.startswith("POSITIONAL") and len(args) > len(named):
            named[parameter.name] = args[len(named)]
    else:
        if len(args) > len(named):
            raise InputError(f"{len(args)} positional arguments were given, but forward takes {len(named)}: {known}")
    twice = [name for name in named if name in kwargs]
    if twice:
        raise InputError(f"argument {twice[0]!r} was given twice, by position and by name")
    return {**named, **kwargs}


def bind(parameters: Sequence[Parameter], inputs: structure.Data, given: Mapping[str, Any]) -> list[Any]:
    """Return the leaves of named arguments that have the structure `inputs`.

    An argument that capture was not told of may be None or repeat the default of forward, and a constant that capture
    was told of may be left out.
    """
    known = ", ".join(map(repr, inputs["keys"]))
    leaves: list[Any] = []
    for name, data in zip(inputs["keys"], inputs["items"], strict=True):
        if name in given:
            _take(name, data, given[name], leaves)
        elif structure.count(data):
            raise InputError(f"argument {name!r} is missing: the graph was captured with {known}")
    for name, value in given.items():
        if name not in inputs["keys"] and value is not None:
            _refuse_unless_default(parameters, name, value, known)
    return leaves


def _refuse_unless_default(parameters: Sequence[Parameter], name: str, value: object, known: str) -> None:
    defaults = {parameter.name: parameter.default for parameter in parameters}
    if name in defaults and isinstance(value, structure.CONSTANTS) and value == defaults[name]:
        return
    if name in defaults or any(parameter.kind == "VAR_KEYWORD" for parameter in parameters):
        advice = f"leave it out, or capture again with {name!r} in example_inputs"
    else:
        advice = f"the model's forward has no such parameter; {suggest(name, defaults)}"
    raise InputError(f"unexpected argument {name!r}: the graph was captured with {known}; {advice}")


def _take(where: str, data: structure.Data, value: Any, leaves: list[Any]) -> None:
    """Append the leaves of `value`, which must have the structure that capture saw at this place."""
    if data["kind"] == "leaf":
        leaves.append(value)
    elif data["kind"] == "constant":
        expected = structure.constant(data)
        if value is not None and not (isinstance(value, structure.CONSTANTS) and value == expected):
            advice = "leave it out, or capture again with the other value"
            raise InputError(f"argument {where!r} is {_short(value)}, and was captured as {expected!r}: {advice}")
    else:
        keys = data.get("keys") or range(len(data["items"]))
        children = _children(value, keys)
        if children is None:
            expected = f"a {data['kind']} of {list(keys)}"
            raise InputError(f"argument {where!r} is {_short(value)}, and was captured as {expected}")
        for key, item, child in zip(keys, data["items"], children, strict=True):
            _take(f"{where}.{key}", item, child, leaves)


def _children(value: Any, keys: Sequence[Any]) -> list[Any] | None:
    if isinstance(value, Mapping):
        return [value[key] for key in keys] if set(value) == set(keys) else None
    return list(value) if isinstance(value, list | tuple) and len(value) == len(keys) else None


class Fit:
    """Says whether tensors are what a graph's inputs have to be, quickly: steps of generation differ at each call.

    All sizes in one row have to be those of a pattern: a size with a symbol is the first with this symbol, another is a
    number, which stands behind the sizes.
    """

    def __init__(self, leaves: Sequence[Leaf], limits: Limits) -> None:
        expected = [size for leaf in leaves for size in leaf.shape]
        self._kinds = [(leaf.dtype, len(leaf.shape)) for leaf in leaves]
        self._numbers = [size for size in expected if isinstance(size, int)]
        numbers = count(len(expected))
        places = [expected.index(size) if isinstance(size, str) else next(numbers) for size in expected]
        self._pattern = itemgetter(*places, *places[:1]) if places else lambda _: ()  # of two or more, a tuple
        self._bounds = [
            (expected.index(symbol), *limits.ranges[symbol]) for symbol in limits.ranges if symbol in expected
        ]
        self._limits = limits

    def __call__(self, tensors: Sequence[Any]) -> bool:
        """Say whether types, ranks and sizes are right, and no size is symbolic."""
        sizes: list[int] = []
        for (dtype, rank), tensor in zip(self._kinds, tensors, strict=True):
            if not isinstance(tensor, Tensor) or tensor.dtype is not dtype or tensor.ndim != rank:
                return False
            sizes += tensor.shape
        if any(type(size) is not int for size in sizes) or self._pattern(sizes + self._numbers)[:-1] != tuple(sizes):
            return False
        if any(
            sizes[place] < least or (most is not None and sizes[place] > most) for place, least, most in self._bounds
        ):
            return False
        return self._limits.hold([tensor.shape for tensor in tensors]) if self._limits.conditions else True


def explain(leaves: Sequence[Leaf], limits: Limits, tensors: Sequence[Any]) -> None:
    """Raise `InputError` unless the tensors have the types, ranks and sizes that the graph is right for.

    Symbolic sizes, which tracers bring, are taken as they are.
    """
    _explain(leaves, limits, tensors)
    shapes = [tensor.shape for tensor in tensors] if limits.conditions else []
    known = all(isinstance(size, int) for shape in shapes for size in shape)
    if known and not limits.hold(shapes):
        tree = next(tree for tree in limits.conditions if not guards.holds(tree, shapes))
        condition = guards.text(tree, [leaf.name for leaf in leaves])
        advice = "give inputs of such sizes, or capture again with these"
        raise InputError(f"the captured graph is right where {condition}, and the inputs are not so: {advice}")


def _explain(leaves: Sequence[Leaf], limits: Limits, tensors: Sequence[Any]) -> None:
    """Raise `InputError` with what is wrong, if anything is."""
    sizes: dict[str, tuple[int, str]] = {}
    for leaf, tensor in zip(leaves, tensors, strict=True):
        _check_kind(leaf, tensor)
        for dimension, (expected, size) in enumerate(zip(leaf.shape, tensor.shape, strict=True)):
            if isinstance(size, int):
                _check_size(f"dimension {dimension} of {leaf.name!r}", size, expected, limits)
                if isinstance(expected, str):
                    _check_equal(f"dimension {dimension} of {leaf.name!r}", size, expected, sizes)


def _check_kind(leaf: Leaf, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise InputError(f"argument {leaf.name!r} is {_short(value)}: expected a torch.Tensor, as in capture")
    if value.dtype != leaf.dtype:
        advice = f"convert it with .to({leaf.dtype})"
        raise InputError(f"argument {leaf.name!r} is {value.dtype}, and was captured as {leaf.dtype}: {advice}")
    if value.ndim != len(leaf.shape):
        captured = f"{len(leaf.shape)} dimensions ({', '.join(map(str, leaf.shape))})"
        raise InputError(f"argument {leaf.name!r} has shape {tuple(value.shape)}, and was captured with {captured}")


def _check_size(where: str, size: int, expected: int | str, limits: Limits) -> None:
    if isinstance(expected, int):
        if size != expected:
            advice = f"give {expected}, or capture again with another example"
            raise InputError(f"{where} has size {size}, and was captured with the fixed size {expected}: {advice}")
        return
    least, most = limits.ranges.get(expected, (0, None))
    if most is not None and size > most:
        raise InputError(f"{where} has size {size}, and the model takes at most {most}: truncate the input")
    if size < least:
        advice = "pad the input, or capture again with a smaller example"
        raise InputError(f"{where} has size {size}, and the captured graph takes at least {least}: {advice}")


def _check_equal(where: str, size: int, symbol: str, sizes: dict[str, tuple[int, str]]) -> None:
    other, first = sizes.setdefault(symbol, (size, where))
    if other != size:
        raise InputError(f"{where} has size {size}, but {first} has {other}: the model needs them equal")


def _short(value: object) -> str:
    text = repr(value) if isinstance(value, structure.CONSTANTS) else ""
    return text if text and len(text) < 40 else f"a {type(value).__name__}"
