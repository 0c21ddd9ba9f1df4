"""The JSON Schema of backend files, made of what is registered: for editors, and for `fxquant backend check`.

It says what one place of a file may hold. What one place says of another (a rule's spec is one of the file's, a recipe
gives no contradicting spec) no schema can: reading the file does. Draft 7 is what editors' TOML tools understand.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fxquant.backends.rules import INNER, LIMITED
from fxquant.backends.schema import OVERRIDE
from fxquant.kernels.table import KERNEL_SETS, Kernel
from fxquant.observers import OBSERVERS
from fxquant.ops import OPS
from fxquant.recipe import FLOAT
from fxquant.registry import Registry
from fxquant.spec import AT_RUN_TIME, FORMATS, GRANULARITIES, RANGES

Schema = dict[str, Any]
_STRING: Schema = {"type": "string"}
_OWN = ("use", "kernel", "note")  # the keys of a rule that are no roles


def backend_schema(passes: Iterable[str]) -> Schema:
    """Return the schema of a backend file for the ops, kernels and observers that are registered now.

    Args:
        passes: the names that `[lower] passes` may list.
    """
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "fxquant backend file",
        "type": "object",
        "additionalProperties": False,
        "required": ["name", "kernels"],
        "properties": {
            "name": _said("For messages and artifacts", _STRING),
            "description": _STRING,
            "kernels": _said("The kernel set that the kernels belong to", {"enum": sorted(KERNEL_SETS)}),
            "spec": _said("Ways to quantize a tensor, by name", _specs()),
            "recipe": _said("Packaged recipes: changes to the specs", _tables(_recipe())),
            "op": _said("Rules; the first that can claims an op", {"type": "array", "items": _rule()}),
            "kernel": _said("What the kernels take, by role", _tables(_by_role())),
            "lower": _object({"passes": {"type": "array", "items": {"enum": list(passes)}}}),
        },
        "allOf": [_kernels_of(name, KERNEL_SETS[name]) for name in sorted(KERNEL_SETS)],
        "definitions": {
            "spec": {**_object(_fields()), "allOf": [*_consistent(), *_observed()]},
            "changes": {"anyOf": [{"const": FLOAT}, _object(_fields())]},
            "limits": _limits(),
        },
    }


def _said(text: str, schema: Schema) -> Schema:
    return {"description": text, **schema}


def _object(properties: Schema) -> Schema:
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _tables(each: Schema) -> Schema:
    return {"type": "object", "additionalProperties": each}


def _specs() -> Schema:
    return {**_tables({"$ref": "#/definitions/spec"}), "propertyNames": {"not": {"const": OVERRIDE}}}


def _recipe() -> Schema:
    """Return what a recipe may hold: changes by the name of a spec, and overrides for modules and ops."""
    changes = _tables({"$ref": "#/definitions/changes"})
    keys = {"path": _STRING, "op": _STRING, "quantize": {"type": "boolean"}, "spec": changes}
    override = {**_object(keys), **_when({"quantize": False}, {"properties": {"spec": {"maxProperties": 0}}})}
    return {**changes, "properties": {OVERRIDE: {"type": "array", "items": override}}}


def _fields() -> Schema:
    """Return what each field of a spec may be."""
    return {
        "dtype": {"enum": list(FORMATS)},
        "granularity": {"enum": list(GRANULARITIES)},
        "axis": _said("The axis that keeps a scale for each index, per-channel only", {"type": "integer"}),
        "group_size": _said("Values along the last axis that share a scale", {"type": "integer", "minimum": 1}),
        "symmetric": {"type": "boolean"},
        "dynamic": _said("Whether the range is found at run time", {"type": "boolean"}),
        "range": {"enum": list(RANGES)},
        "observer": {"enum": list(OBSERVERS)},
        "options": _said("The observer's options", {"type": "object"}),
    }


def _when(condition: Schema, then: Schema) -> Schema:
    """Return a schema that demands `then` where `condition` holds: values of keys, which are all there."""
    consts = {key: {"const": value} for key, value in condition.items()}
    return {"if": {"properties": consts, "required": list(condition)}, "then": then}


def _consistent() -> Iterator[Schema]:
    """Yield what one field of a spec says of another."""
    dynamic = {"properties": {"dynamic": {"const": True}}, "required": ["dynamic"]}
    yield from (_when({"granularity": each}, dynamic) for each in AT_RUN_TIME)
    yield _when({"granularity": "per-group"}, {"not": dynamic})
    symmetric = {"properties": {"symmetric": {"const": True}}, "required": ["symmetric"]}
    yield from (_when({"dtype": name}, symmetric) for name in FORMATS if FORMATS[name].floating)
    for key, granularity in (("axis", "per-channel"), ("group_size", "per-group")):
        needed = {"properties": {"granularity": {"const": granularity}}, "required": ["granularity"]}
        yield {"if": {"required": [key]}, "then": needed}


def _observed() -> Iterator[Schema]:
    """Yield the options that each observer has; those of a range that is found at run time mean nothing."""
    for name in OBSERVERS:
        known = {"options": {"propertyNames": {"enum": sorted(OBSERVERS[name].OPTIONS)}}}
        dynamic = {"properties": {"dynamic": {"const": True}}, "required": ["dynamic"]}
        yield _when({"observer": name}, {"anyOf": [dynamic, {"properties": known}]})


def _rule() -> Schema:
    return {
        "type": "object",
        "required": ["use"],
        "properties": {"use": _said("The op", {"enum": sorted(OPS)})},
        "allOf": [_when({"use": name}, _roles_of(name)) for name in sorted(OPS)],
    }


def _roles_of(op: str) -> Schema:
    """Return what a rule for an op may hold: specs for its roles, or else a note that says why none."""
    roles = OPS[op].roles
    noted = {"properties": {"note": {"pattern": r"\S"}}, "required": ["note"]}
    quantized = [{"required": [role]} for role in roles]
    return {**_object(dict.fromkeys((*_OWN, *roles), _STRING)), "anyOf": [*quantized, noted]}


def _by_role() -> Schema:
    roles = sorted({role for name in OPS for role in OPS[name].roles})
    return _object({role: {"$ref": "#/definitions/limits"} for role in roles})


def _limits() -> Schema:
    fields = _fields()
    fields["dtype"] = {"enum": [*FORMATS, FLOAT]}
    either = {key: _one_or_more(fields[key]) for key in LIMITED}
    return _object({**either, INNER: {"type": "integer", "minimum": 1}})


def _one_or_more(value: Mapping[str, Any]) -> Schema:
    return {"anyOf": [dict(value), {"type": "array", "items": dict(value), "minItems": 1}]}


def _kernels_of(kernel_set: str, registry: Registry[Kernel]) -> Schema:
    """Return what a file with the kernels of one set may name: each kernel with the ops that it computes."""
    names = sorted(registry)
    pairs = [
        _when({"kernel": name}, {"properties": {"use": {"enum": sorted(registry[name].serves)}}, "required": needs})
        for name in names
        for needs in [sorted(registry[name].needs)]
    ]
    rule = {"properties": {"kernel": {"enum": names}}, "allOf": pairs}
    then = {"op": {"items": rule}, "kernel": {"propertyNames": {"enum": names}}}
    return _when({"kernels": kernel_set}, {"properties": then})
