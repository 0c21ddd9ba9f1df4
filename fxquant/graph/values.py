"""The argument values of graph nodes as JSON, exactly and without ambiguity.

None, bool, int, finite float and list stand for themselves; a string is a reference to a node, "%name"; everything else
is an object of one key that says what it is: {"str": "tanh"}, {"float": "-inf"}, {"tuple": […]}, {"slice": [a, b, c]},
{"ellipsis": true}, {"dtype": "int8"}, {"layout": "strided"}, {"memory_format": "…"}, {"device": "cpu"}.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from fxquant.errors import ArtifactError, suggest

Nodes = Mapping[str, fx.Node]

_DEEPEST = 16  # of lists in lists; ATen's schemas nest two deep
_LARGEST = 2**64
_DEVICE = re.compile(r"[a-z]+(:\d+)?")
_NAMED: dict[str, type] = {"dtype": torch.dtype, "layout": torch.layout, "memory_format": torch.memory_format}
_KNOWN: dict[str, dict[str, Any]] = {
    tag: {name: value for name, value in vars(torch).items() if isinstance(value, kind)} for tag, kind in _NAMED.items()
}


def encode(value: Any) -> Any:
    """Return the JSON form of an argument.

    Raises:
        ArtifactError: the value is of a type that has no form here.
    """
    if isinstance(value, fx.Node):
        return f"%{value.name}"
    if isinstance(value, list):
        return [encode(each) for each in value]
    if value is None or type(value) in (bool, int) or (type(value) is float and math.isfinite(value)):
        return value
    return _tagged(value)


def _tagged(value: Any) -> dict[str, Any]:
    if isinstance(value, tuple):
        return {"tuple": [encode(each) for each in value]}
    if isinstance(value, slice):
        return {"slice": [encode(each) for each in (value.start, value.stop, value.step)]}
    if type(value) is float or type(value) is str:
        return {type(value).__name__: value if isinstance(value, str) else repr(value)}
    return _tagged_constant(value)


def _tagged_constant(value: Any) -> dict[str, Any]:
    if value is Ellipsis:
        return {"ellipsis": True}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    for tag, kind in _NAMED.items():
        if isinstance(value, kind):
            return {tag: str(value).removeprefix("torch.")}
    raise ArtifactError(
        f"it holds a {type(value).__module__}.{type(value).__qualname__}; an artifact can hold nodes, None, bool, int, "
        "float, str, list, tuple, slice, dtype, device, layout and memory format"
    )


def decode(data: Any, nodes: Nodes, depth: int = 0) -> Any:
    """Return the argument that `encode` made `data` of; `nodes` are those that may be referred to.

    Raises:
        ArtifactError: `data` is not of the form above; it may come from a damaged or hostile file.
    """
    if data is None or isinstance(data, bool | float):
        return data
    if isinstance(data, int):
        return _integer(data)
    if isinstance(data, str):
        return _node(data, nodes)
    if depth < _DEEPEST:
        if isinstance(data, list):
            return [decode(each, nodes, depth + 1) for each in data]
        if isinstance(data, dict) and len(data) == 1:
            tag, content = next(iter(data.items()))
            if tag in _DECODERS:
                return _DECODERS[tag](content, nodes, depth + 1)
    raise _malformed(data)


def is_dtype(name: Any) -> bool:
    """Say whether `name` is what `encode` calls a dtype of this torch."""
    return isinstance(name, str) and name in _KNOWN["dtype"]


def _integer(value: int) -> int:
    if abs(value) > _LARGEST:
        raise ArtifactError("it holds an integer of more than 64 bits")
    return value


def _node(reference: str, nodes: Nodes) -> fx.Node:
    node = nodes.get(reference.removeprefix("%"))
    if node is None or not reference.startswith("%"):
        raise ArtifactError(f"{reference[:80]!r} is no reference to an earlier node")
    return node


def _tuple(content: Any, nodes: Nodes, depth: int) -> tuple[Any, ...]:
    if not isinstance(content, list):
        raise _malformed(content)
    return tuple(decode(each, nodes, depth) for each in content)


def _slice(content: Any, nodes: Nodes, depth: int) -> slice:
    parts = _tuple(content, nodes, depth)
    if len(parts) != 3:
        raise _malformed(content)
    return slice(*parts)


def _float(content: Any, nodes: Nodes, depth: int) -> float:
    if content not in ("inf", "-inf", "nan"):
        raise _malformed(content)
    return float(content)


def _str(content: Any, nodes: Nodes, depth: int) -> str:
    if not isinstance(content, str):
        raise _malformed(content)
    return content


def _ellipsis(content: Any, nodes: Nodes, depth: int) -> Any:
    if content is not True:
        raise _malformed(content)
    return Ellipsis


def _device(content: Any, nodes: Nodes, depth: int) -> torch.device:
    if isinstance(content, str) and _DEVICE.fullmatch(content):
        try:
            return torch.device(content)
        except RuntimeError:
            pass
    raise ArtifactError(f"{str(content)[:80]!r} is no device that this torch knows")


def _named(tag: str) -> Callable[[Any, Nodes, int], Any]:
    def find(content: Any, nodes: Nodes, depth: int) -> Any:
        if not isinstance(content, str) or content not in _KNOWN[tag]:
            raise ArtifactError(f"{str(content)[:80]!r} is no {tag} of this torch: {suggest(content, _KNOWN[tag])}")
        return _KNOWN[tag][content]

    return find


_DECODERS: dict[str, Callable[[Any, Nodes, int], Any]] = {
    "tuple": _tuple,
    "slice": _slice,
    "float": _float,
    "str": _str,
    "ellipsis": _ellipsis,
    "device": _device,
    **{tag: _named(tag) for tag in _NAMED},
}


def _malformed(data: Any) -> ArtifactError:
    return ArtifactError(f"{str(data)[:80]!r} is no value of a known form, at most {_DEEPEST} deep")
