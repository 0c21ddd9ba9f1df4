"""A generated forward as data: its calls in order, for what runs them without Python in between.

The plan is read from the very lines that Python would run, so it cannot say anything else than they do.
"""

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch

from fxquant.graph.attributes import Path, path_of

# How an argument of a call is written: (CONSTANT, value), (SLOT, index), (LIST, (argument, …)).
CONSTANT, SLOT, LIST = 0, 1, 2
Argument = tuple[int, Any]
Call = tuple[str, str, tuple[Argument, ...]]

_ON_NUMBERS = {ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.FloorDiv: "floordiv"}
_WORDS = {"inf": float("inf"), "nan": float("nan"), "device": torch.device}


class _Unplanned(Exception):  # noqa: N818  no error: the lines run as they are
    """A line is none that a plan has."""


@dataclass(frozen=True)
class Plan:
    """The calls of a forward.

    Invariants:
        - `inputs` are the names that the calls read and do not make: the first `given` come with a call of the graph,
          the others are its parameters and buffers, at `paths`. They have the first slots, the results of `calls`
          those behind.
        - a call is (operator, overload, as many arguments as its schema has); or, with the overload "", `getitem` or
          one of add, sub, mul and floordiv of two whole numbers.
        - `returned` are the leaves that forward returns: slots, or None for a leaf that is None.
    """

    inputs: tuple[str, ...]
    paths: tuple[Path, ...]
    calls: tuple[Call, ...]
    returned: tuple[int | None, ...]

    @property
    def given(self) -> int:
        """How many inputs come with a call."""
        return len(self.inputs) - len(self.paths)


def read(body: Sequence[str]) -> Plan | None:
    """Return the plan of the lines of a generated forward; None where only Python can run them."""
    statements = ast.parse("".join(body)).body
    try:
        assigned = dict(_assigned(statements))
        leaves = _returned(statements[-1])
        calls = {name: value for name, value in assigned.items() if path_of(value) is None}
        names = dict.fromkeys(name for value in (*calls.values(), *leaves) for name in _names(value))
        inputs = tuple(sorted((name for name in names if name not in calls), key=lambda name: name in assigned))
        slots = {name: index for index, name in enumerate((*inputs, *calls))}
        made = tuple(_call(value, slots) for value in calls.values())
        returned = tuple(_leaf(_argument(leaf, slots)) for leaf in leaves)
    except _Unplanned:
        return None
    paths = tuple(path for name in inputs if name in assigned and (path := path_of(assigned[name])))
    return Plan(inputs, paths, made, returned)


def _assigned(statements: Sequence[ast.stmt]) -> Iterator[tuple[str, ast.expr]]:
    """Yield name and value of each assignment but of those that only let values go."""
    for each in statements[:-1]:
        match each:
            case ast.Assign(value=ast.Constant(value=None)):
                continue
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                yield name, value
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                yield name, value
            case _:
                raise _Unplanned


def _returned(last: ast.stmt) -> list[ast.expr]:
    match last:
        case ast.Return(value=ast.Call(args=[ast.Tuple(elts=leaves)])):
            return leaves
    raise _Unplanned


def _leaf(argument: Argument) -> int | None:
    match argument:
        case (1, int(slot)):
            return slot
        case (0, None):
            return None
    raise _Unplanned


def _names(value: ast.AST) -> Iterator[str]:
    """Yield the variables that an expression reads."""
    if isinstance(value, ast.Attribute):  # torch.float32, torch.ops.…
        return
    if isinstance(value, ast.Name) and value.id not in _WORDS:
        yield value.id
    for child in ast.iter_child_nodes(value):
        yield from _names(child)


def _call(value: ast.expr, slots: dict[str, int]) -> Call:
    match value:
        case ast.Call(func=ast.Attribute() as function):
            return _operator(value, _attribute(function), slots)
        case ast.Subscript(value=ast.Name() as source, slice=ast.Constant(value=int()) as index):
            return "getitem", "", (_argument(source, slots), _argument(index, slots))
        case ast.BinOp(op=sign) if type(sign) in _ON_NUMBERS:
            return _ON_NUMBERS[type(sign)], "", (_argument(value.left, slots), _argument(value.right, slots))
    raise _Unplanned


def _operator(call: ast.Call, target: Any, slots: dict[str, int]) -> Call:
    if not isinstance(target, torch._ops.OpOverload):
        raise _Unplanned
    schema = target._schema
    named = {each.arg: _argument(each.value, slots) for each in call.keywords}
    places = dict(zip((each.name for each in schema.arguments), call.args, strict=False))
    given = named | {name: _argument(value, slots) for name, value in places.items()}
    arguments = tuple(given.get(each.name, _default(each.default_value)) for each in schema.arguments)
    return schema.name, schema.overload_name, arguments


def _default(value: Any) -> Argument:
    return (LIST, tuple(map(_default, value))) if isinstance(value, list) else (CONSTANT, value)


def _argument(value: ast.expr, slots: dict[str, int]) -> Argument:
    match value:
        case ast.Name(id=name) if name in slots:
            return SLOT, slots[name]
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return LIST, tuple(_argument(item, slots) for item in items)
    return CONSTANT, _constant(value)


def _constant(value: ast.expr) -> Any:
    match value:
        case ast.Constant(value=known):
            return known
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_constant(operand)
        case ast.Name(id=name) if name in _WORDS:
            return _WORDS[name]
        case ast.Attribute():
            return _attribute(value)
        case ast.Call(func=ast.Name(id="device"), keywords=keywords):
            return torch.device(**{str(each.arg): _constant(each.value) for each in keywords})
    raise _Unplanned


def _attribute(value: ast.expr) -> Any:
    """Return torch.a.b.c."""
    root, *names = ast.unparse(value).split(".")
    if root != "torch":
        raise _Unplanned
    return reduce(getattr, names, torch)
