"""Nested Python values with tensor leaves, as JSON-able data: the structure of a graph's inputs and outputs.

Data is a tree of dicts with a "kind": `leaf`, `constant` (None, bool, int, float, str), `dict`, `list`, `tuple`,
`namedtuple`, `output` (a transformers ModelOutput). It may come from a hostile file, so it never names code to run: a
class is looked up only under `torch.return_types` and among the ModelOutputs of `transformers`.
"""

import importlib
import math
import re
import reprlib
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxquant.errors import ArtifactError, InputError, suggest

Data = dict[str, Any]
Builder = Callable[[Sequence[Any]], Any]

CONSTANTS = (bool, int, float, str, type(None))
_CONTAINERS = ("dict", "list", "tuple", "namedtuple", "output")
_DEEPEST = 64  # no model nests its arguments so deep; a hostile file might, to exhaust the stack


class Output(OrderedDict[str, Any]):
    """A model's output where its own class cannot be had: fields by name, by attribute and by position."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the output has no field {name!r}: {suggest(name, self)}") from None

    def __getitem__(self, key: Any) -> Any:
        """Return the field called `key`, or the field (or fields) at position `key`."""
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def to_tuple(self) -> tuple[Any, ...]:
        """Return the fields in order."""
        return tuple(self.values())


pytree.register_pytree_node(
    Output,
    lambda value: (list(value.values()), list(value)),
    lambda values, keys: Output(zip(keys, values, strict=True)),
    serialized_type_name="fxquant.Output",
)


def describe(value: Any, where: str = "the value") -> tuple[list[Any], Data]:
    """Take a value apart into its leaves, in order, and JSON-able data that `build` puts them back with.

    Leaves are tensors, and the symbolic sizes of an export. A mapping that is no ModelOutput becomes a plain dict.

    Raises:
        InputError: something in it is neither a tensor, a constant nor a known container; the text begins with `where`.
    """
    leaves: list[Any] = []
    return leaves, _describe(value, where, leaves)


def _describe(value: Any, where: str, leaves: list[Any]) -> Data:
    if isinstance(value, Tensor | torch.SymInt):
        leaves.append(value)
        return {"kind": "leaf"}
    if isinstance(value, CONSTANTS):
        return {"kind": "constant", "value": _finite_or_text(value), "type": type(value).__name__}
    head = _head(value)
    if head is None:
        expected = "a tensor, None, bool, int, float, str, or a dict, list or tuple of these"
        raise InputError(f"{where} is a {type(value).__module__}.{type(value).__qualname__}; expected {expected}")
    pairs = list(value.items()) if "keys" in head else list(enumerate(value))
    return {**head, "items": [_describe(item, f"{where}[{key!r}]", leaves) for key, item in pairs]}


def _head(value: Any) -> Data | None:
    cls = type(value)
    if isinstance(value, Output) or any(_is_model_output(base) for base in cls.__mro__):
        # a class from outside transformers could not be built from a file, so it becomes an Output
        name = f"{cls.__module__}.{cls.__qualname__}" if cls.__module__.startswith("transformers.") else None
        return {"kind": "output", "class": name, "keys": list(value)}
    if isinstance(value, Mapping) and all(isinstance(key, str | int) for key in value):
        return {"kind": "dict", "keys": list(value)}
    if isinstance(value, tuple) and cls.__module__ == "torch.return_types":
        return {"kind": "namedtuple", "class": f"torch.return_types.{cls.__name__}", "fields": []}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {"kind": "namedtuple", "class": cls.__name__, "fields": list(value._fields)}
    return {"kind": cls.__name__} if cls in (list, tuple) else None


def _is_model_output(cls: type) -> bool:
    return cls.__name__ == "ModelOutput" and cls.__module__.startswith("transformers.")


def _finite_or_text(value: Any) -> Any:
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


def constant(data: Data) -> Any:
    """Return the value of a node of kind "constant"; a float that JSON has no number for is stored as text."""
    value = data.get("value")
    if data.get("type") == "float" and value in ("inf", "-inf", "nan"):
        return float(value)
    if not isinstance(value, CONSTANTS):
        raise ArtifactError(f"a constant of a structure is {value!r}; expected None, a bool, a number or text")
    return value


def build(data: Data, leaves: Sequence[Any]) -> Any:
    """Put a value together again: the inverse of `describe`.

    Raises:
        ArtifactError: the data is no structure, or names a class that is not to be built.
    """
    return builder(data)(leaves)


def count(data: Data) -> int:
    """Return how many leaves a structure has."""
    return 1 if data["kind"] == "leaf" else sum(count(item) for item in data.get("items", ()))


def names(data: Data, prefix: str = "") -> Iterator[str]:
    """Yield a dotted name per leaf, such as `pair.0`, from field names and positions."""
    if data["kind"] == "leaf":
        yield prefix
    for key, item in zip(data.get("keys") or range(len(data.get("items", ()))), data.get("items", ()), strict=True):
        yield from names(item, f"{prefix}.{key}" if prefix else str(key))


def builder(data: Data) -> Builder:
    """Return a function from leaves to the value: checks and class look-ups are done once, here."""
    build_at, _ = _builder(data, 0, 0)
    return build_at


def _builder(data: Any, first: int, depth: int) -> tuple[Builder, int]:
    kind = data.get("kind") if isinstance(data, dict) else None
    if kind == "leaf":
        return lambda leaves: leaves[first], first + 1
    if kind == "constant":
        value = constant(data)
        return lambda leaves: value, first
    if kind not in _CONTAINERS or not isinstance(data.get("items"), list) or depth > _DEEPEST:
        raise ArtifactError(
            f"{reprlib.repr(data)} is no structure of values, of a known kind and at most {_DEEPEST} deep"
        )
    parts, begin = [], first
    for item in data["items"]:
        part, first = _builder(item, first, depth + 1)
        parts.append(part)
    make = _maker(kind, data, len(parts))
    if all(item["kind"] == "leaf" for item in data["items"]):  # as nearly all results are
        end = first
        return lambda leaves: make(list(leaves[begin:end])), end
    return lambda leaves: make([part(leaves) for part in parts]), first


def _maker(kind: str, data: Data, size: int) -> Callable[[list[Any]], Any]:
    if kind == "list":
        return list
    if kind == "tuple":
        return tuple
    if kind == "namedtuple":
        return _namedtuple(data, size)
    keys = data.get("keys")
    if not isinstance(keys, list) or len(keys) != size or not all(isinstance(key, str | int) for key in keys):
        raise ArtifactError(f"a structure has {size} values under the keys {keys!r}")
    cls = _output_class(data.get("class"), keys) if kind == "output" else None
    if cls is not None:
        return lambda values: cls(**dict(zip(keys, values, strict=True)))
    generic: Any = Output if kind == "output" else dict
    return lambda values: generic(zip(keys, values, strict=True))


def _namedtuple(data: Data, size: int) -> Callable[[list[Any]], Any]:
    name, fields = data.get("class"), data.get("fields")
    if isinstance(name, str) and name.startswith("torch.return_types."):
        known: Any = getattr(torch.return_types, name.rpartition(".")[2], None)
        if isinstance(known, type) and issubclass(known, tuple) and getattr(known, "n_fields", None) == size:
            return known
    elif isinstance(name, str) and isinstance(fields, list) and len(fields) == size:
        try:
            cls: Any = namedtuple(name, fields)  # type: ignore[misc]  # it checks that the names are identifiers
            return lambda values: cls(*values)
        except (ValueError, TypeError):
            pass
    raise ArtifactError(f"a structure names the tuple {name!r} of {size} fields {fields!r}, which cannot be built")


def _output_class(name: Any, keys: list[Any]) -> type | None:
    """Return the ModelOutput called `name`; None where this transformers lacks it or gives it other fields."""
    if name is None:
        return None
    if not isinstance(name, str) or not re.fullmatch(r"transformers(\.[A-Za-z_]\w*)+", name):
        raise ArtifactError(f"a structure names the class {name!r}: only the ModelOutputs of transformers are built")
    module, _, attribute = name.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), attribute, None)
        base = importlib.import_module("transformers.utils").ModelOutput
    except (ImportError, RuntimeError):  # transformers wraps the failure of an optional dependency in the latter
        return None
    if cls is None:
        return None
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise ArtifactError(f"a structure names {name!r}, which is no ModelOutput: nothing else is built")
    return cls if set(keys) <= set(getattr(cls, "__dataclass_fields__", ())) else None
