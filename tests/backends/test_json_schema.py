"""The JSON Schema of backend files refuses nothing that can be read, and refuses what one place alone makes wrong."""

import copy
import json
import tomllib
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxquant.backends import packaged_backends, read_backend
from fxquant.backends.json_schema import backend_schema
from fxquant.errors import ConfigError
from fxquant.kernels.table import KERNEL_SETS
from fxquant.ops import OPS
from fxquant.passes.lowering import LOWERING, listed_passes

SHIPPED = json.loads(files("fxquant.backends").joinpath("schema.json").read_text())
VALIDATOR = jsonschema.Draft7Validator(SHIPPED)
FOLDER = Path(str(files("fxquant.backends")))
FILE = {
    "name": "mine",
    "description": "text",
    "kernels": "reference",
    "spec": {
        "activation": {"dtype": "uint8", "granularity": "per-token", "dynamic": True},
        "weight": {"dtype": "int8", "granularity": "per-channel", "axis": 0, "symmetric": True, "range": "full"},
        "groups": {"granularity": "per-group", "group_size": 32},
        "clipped": {"observer": "histogram", "options": {"method": "mse"}},
    },
    "recipe": {
        "static": {"activation": {"granularity": "per-tensor", "dynamic": False}},
        "w": {
            "activation": "float",
            "override": [{"path": "*head", "op": "linear", "quantize": True, "spec": {"weight": {"dtype": "int8"}}}],
        },
    },
    "op": [
        {"use": "linear", "kernel": "linear_int8", "x": "activation", "weight": "weight", "output": "activation"},
        {"use": "embedding", "note": "no kernel"},
    ],
    "kernel": {"linear_int8": {"weight": {"dtype": ["int8"], "axis": 0}, "x": {"inner_multiple_of": 4}}},
    "lower": {"passes": ["merge_linears"]},
}


def is_read(data):
    try:
        listed_passes(read_backend(data, "mutated").passes, "mutated")
    except ConfigError:
        return False
    return True


def places(data, path=()):
    """Yield the path of every value in nested tables and lists."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


def at(data, path):
    for key in path:
        data = data[key]
    return data


PLACES = sorted(places(FILE), key=str)
VALUES = [0, 1, -1, 2.5, True, "", "float", "int8", "per-token", "linear", "weight", [], ["int8"], {}, {"axis": 0}]


def test_the_shipped_schema_is_made_of_what_is_registered():
    """Regenerate it with: python -m fxquant backend schema --output fxquant/backends/schema.json."""
    packaged = {name for data in SHIPPED["allOf"] for name in [data["if"]["properties"]["kernels"]["const"]]}
    if packaged == set(KERNEL_SETS) and set(SHIPPED["properties"]["op"]["items"]["properties"]["use"]["enum"]) == set(
        OPS
    ):
        assert backend_schema(LOWERING) == SHIPPED
    else:  # another test has registered more in this process
        assert packaged <= set(KERNEL_SETS)
    jsonschema.Draft7Validator.check_schema(SHIPPED)


@pytest.mark.parametrize("name", packaged_backends())
def test_packaged_files_are_valid(name):
    assert list(VALIDATOR.iter_errors(tomllib.loads((FOLDER / f"{name}.toml").read_text()))) == []


def test_the_file_of_the_mutations_is_valid():
    assert is_read(FILE)
    assert VALIDATOR.is_valid(FILE)


@given(place=st.sampled_from(PLACES), value=st.sampled_from(VALUES))
def test_what_can_be_read_is_valid(place, value):
    data = copy.deepcopy(FILE)
    at(data, place[:-1])[place[-1]] = value
    assert VALIDATOR.is_valid(data) or not is_read(data)


@given(place=st.sampled_from(PLACES), text=st.sampled_from(["x", "_"]))
def test_a_misspelt_key_is_refused_by_both(place, text):
    data = copy.deepcopy(FILE)
    table = at(data, place[:-1])
    own = (("spec",), ("recipe",), ("recipe", "static"), ("recipe", "w"), ("recipe", "w", "override", 0, "spec"))
    if not isinstance(table, dict) or place[:-1] in own:
        return  # these names are the file's own
    table[f"{place[-1]}{text}"] = table.pop(place[-1])
    assert not is_read(data)
    assert not VALIDATOR.is_valid(data)


WRONG = {
    "no name": (("name",), None),
    "unknown kernel set": (("kernels",), "refrence"),
    "dtype": (("spec", "weight", "dtype"), "int9"),
    "an axis of per-token": (("spec", "activation", "axis"), 0),
    "static per-token": (("spec", "activation", "dynamic"), False),
    "dynamic groups": (("spec", "groups", "dynamic"), True),
    "no value in a group": (("spec", "groups", "group_size"), 0),
    "an option of another observer": (("spec", "clipped", "options"), {"percentil": 99}),
    "unknown op": (("op", 0, "use"), "liner"),
    "a role of another op": (("op", 0, "indices"), "weight"),
    "unknown kernel": (("op", 0, "kernel"), "linear_in8"),
    "a kernel of another op": (("op", 0, "kernel"), "embedding_int8"),
    "a role that the kernel needs": (("op", 0, "weight"), None),
    "no note": (("op", 1, "note"), None),
    "an empty note": (("op", 1, "note"), " "),
    "a limit that is none": (("kernel", "linear_int8", "weight", "observer"), "minmax"),
    "an empty limit": (("kernel", "linear_int8", "weight", "dtype"), []),
    "multiples of nothing": (("kernel", "linear_int8", "x", "inner_multiple_of"), 0),
    "unknown pass": (("lower", "passes"), ["merge_liners"]),
    "a spec called override": (("spec", "override"), {}),
    "a key of an override": (("recipe", "w", "override", 0, "paths"), "*"),
    "an override that changes and does not": (("recipe", "w", "override", 0, "quantize"), False),
    "a change of an override": (("recipe", "w", "override", 0, "spec", "weight", "dtype"), "int9"),
    "a change that is none": (("recipe", "w", "activation"), "int8"),
}


@pytest.mark.parametrize(("place", "value"), WRONG.values(), ids=WRONG)
def test_what_one_place_makes_wrong_is_refused_by_both(place, value):
    data = copy.deepcopy(FILE)
    if value is None:
        del at(data, place[:-1])[place[-1]]
    else:
        at(data, place[:-1])[place[-1]] = value
    assert not is_read(data)
    assert not VALIDATOR.is_valid(data)
