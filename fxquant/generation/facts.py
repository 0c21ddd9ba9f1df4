"""What graphs that generate know of their model; it may come from a damaged or hostile file, and is checked."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from fxquant.errors import ArtifactError, ConfigError
from fxquant.generation import cache, calls
from fxquant.graph import edit
from fxquant.graph.calling import Leaf, Parameter
from fxquant.graph.signature import signature_of

_KEY = "generation"  # of the fact of a graph
_CACHE_DIMENSIONS = 4
_KINDS: dict[type, str] = {dict: "an object", list: "a list", str: "a text"}


@dataclass(frozen=True)
class Forward:
    """The forward that a graph stands for: its parameters, its signature without self, and its output's class."""

    parameters: tuple[Parameter, ...]
    signature: inspect.Signature
    output: str


def read_forward(graphs: Mapping[str, fx.GraphModule], name: str, fields: Sequence[str]) -> Forward:
    """Return what the graph called `name` says of the forward it stands for, whose output has these fields.

    Raises:
        ConfigError: a key is missing, or holds what it cannot; the text names graph and key.
    """
    given, output = (_value(graphs, name, key, kind) for key, kind in (("parameters", list), ("output", str)))
    try:
        parameters = calls.parameters(given)
        own = calls.signature(parameters)
    except (AttributeError, TypeError, ValueError) as error:
        raise _wrong(name, "parameters", given, f"the parameters of a forward ({error})") from None
    try:
        calls.output(output, dict.fromkeys(fields))
    except ArtifactError as error:
        raise _wrong(name, "output", output, f"a class of transformers ({error})") from None
    return Forward(parameters, own, output)


def read_positions(graphs: Mapping[str, fx.GraphModule], name: str) -> str | None:
    """Return how positions are counted, a key of `POSITIONS`, or None where the graph takes none."""
    found = _facts(graphs, name, "positions")["positions"]
    if found is not None and (not isinstance(found, str) or found not in calls.POSITIONS):
        raise _wrong(name, "positions", found, f"null or one of {', '.join(calls.POSITIONS)}")
    return found


def read_config(graphs: Mapping[str, fx.GraphModule], name: str) -> dict[str, Any]:
    """Return how the model generates by default, as data."""
    found: dict[str, Any] = _value(graphs, name, "config", dict)
    return found


def check_ends(
    graphs: Mapping[str, fx.GraphModule], name: str, inputs: Sequence[str], outputs: Sequence[str]
) -> list[Leaf]:
    """Return the inputs of the graph called `name`, after checking that it has these inputs and outputs.

    Raises:
        ConfigError: it takes or returns something else than named tensors, or lacks one of these.
    """
    own = signature_of(graphs[name])
    for what, needed, found in (("takes", inputs, own.inputs), ("returns", outputs, own.outputs)):
        keys = found.get("keys") if found.get("kind") == "dict" else None
        flat = keys is not None and all(item["kind"] == "leaf" for item in found["items"])
        lacking = [each for each in needed if not flat or keys is None or each not in keys]
        if not flat or lacking:
            raise ConfigError(
                f"graph {name!r} {what} {str(keys)[:200]}: expected tensors by name, {', '.join(needed)} among them"
            )
    keys = own.inputs["keys"]
    return [Leaf(key, leaf.dtype, leaf.shape) for key, leaf in zip(keys, own.leaves, strict=True)]


def source_of(graphs: Mapping[str, fx.GraphModule], outputs: Sequence[str]) -> list[str]:
    """Return the inputs of the graph `encoder`: the source, and its mask where it takes one.

    Raises:
        ConfigError: it takes something else, or does not return these outputs.
    """
    names = [leaf.name for leaf in check_ends(graphs, "encoder", (), outputs)]
    if not names or names[1:] not in ([], ["attention_mask"]):
        raise ConfigError(
            f"graph 'encoder' takes {str(names)[:200]}: expected the source, and attention_mask or nothing"
        )
    return names


def caches_of(name: str, leaves: Sequence[Leaf], prefix: str = "") -> list[Leaf]:
    """Return those inputs of a graph that are a cache, in the order of `cache.names`.

    Raises:
        ConfigError: they are not keys and values, (batch, heads, length, size), of one layer or more.
    """
    found = [leaf for leaf in leaves if leaf.name.startswith(tuple(prefix + kind for kind in cache.KINDS))]
    expected = list(cache.names(max(len(found) // 2, 1), prefix))
    if [leaf.name for leaf in found] != expected:
        raise ConfigError(f"graph {name!r} takes the cache {[leaf.name for leaf in found]}: expected {expected}")
    for leaf in found:
        sizes = leaf.shape[1::2] if len(leaf.shape) == _CACHE_DIMENSIONS else ("",)
        if not all(isinstance(size, int) for size in sizes):
            raise ConfigError(f"graph {name!r} takes {leaf.name} of shape {leaf.shape}: heads and size are not fixed")
    return found


def _value(graphs: Mapping[str, fx.GraphModule], name: str, key: str, kind: type) -> Any:
    found = _facts(graphs, name, key)[key]
    if not isinstance(found, kind):
        raise _wrong(name, key, found, _KINDS[kind])
    return found


def _facts(graphs: Mapping[str, fx.GraphModule], name: str, key: str) -> dict[str, Any]:
    facts = edit.marks(graphs[name]).get(_KEY)
    if not isinstance(facts, dict) or key not in facts:
        lacks = f"no {_KEY}.{key} among its marks" if isinstance(facts, dict) else f"no {_KEY} among its marks"
        raise ConfigError(f"graph {name!r} has {lacks}, which capture_generation writes")
    return facts


def _wrong(name: str, key: str, found: object, expected: str) -> ConfigError:
    return ConfigError(f"graph {name!r} has {_KEY}.{key} = {str(found)[:80]!r}: expected {expected}")
