import json

import pytest
import torch

from fxquant.errors import ConfigError
from fxquant.spec import FORMATS, QuantSpec


@pytest.mark.parametrize(
    ("spec", "low", "high"),
    [
        (QuantSpec(), -128, 127),
        (QuantSpec(symmetric=True), -127, 127),
        (QuantSpec(symmetric=True, range="full"), -128, 127),
        (QuantSpec(range="full"), -128, 127),
        (QuantSpec(dtype="uint8"), 0, 255),
        (QuantSpec(dtype="uint8", symmetric=True), 0, 255),
        (QuantSpec(dtype="int32", symmetric=True), -(2**31) + 1, 2**31 - 1),
        (QuantSpec(dtype="int4"), -8, 7),
        (QuantSpec(dtype="int4", symmetric=True), -7, 7),
        (QuantSpec(dtype="int4", symmetric=True, range="full"), -8, 7),
        (QuantSpec(dtype="uint4"), 0, 15),
        (QuantSpec(dtype="float8_e4m3fn", symmetric=True), -448, 448),
    ],
    ids=lambda value: value if isinstance(value, int) else f"{value.dtype}-{value.symmetric}-{value.range}",
)
def test_integer_range(spec, low, high):
    assert (spec.qmin, spec.qmax) == (low, high)


@pytest.mark.parametrize("name", [name for name in FORMATS if not FORMATS[name].floating])
def test_format_bounds_are_those_of_its_bits(name):
    found, bits = FORMATS[name], int(name.removeprefix("u").removeprefix("int"))
    signed = not name.startswith("u")
    assert (found.minimum, found.maximum) == ((-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1))
    stated = torch.iinfo(found.torch_dtype)
    assert (found.signed, found.signed) == (signed, stated.min < 0)
    assert found.packed is (bits == 4)
    assert (found.minimum, found.maximum) == (stated.min, stated.max) or found.packed


def test_per_channel_keeps_axis_zero_unless_told():
    assert QuantSpec(granularity="per-channel").axis == 0
    assert QuantSpec(granularity="per-channel", axis=-1).axis == -1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"dtype": "int9"},
            r"dtype = 'int9' is not known: did you mean 'int8'\? Known: float8_e4m3fn, int32, int4, int8, uint4, uint8",
        ),
        ({"granularity": "per-row"}, r"granularity = 'per-row' is not known: did you mean 'per-"),
        ({"range": "restrict"}, r"range = 'restrict' is not known: did you mean 'restricted'\?"),
        ({"axis": 1}, r"axis = 1 has a meaning for per-channel only, not for per-tensor"),
        ({"granularity": "per-token", "dynamic": True, "axis": 1}, r"axis = 1 .* not for per-token"),
        ({"granularity": "per-token"}, r"per-token scales exist at run time only: set dynamic = true, or use"),
        ({"granularity": "per-sample"}, r"per-sample scales exist at run time only: set dynamic = true, or use"),
        ({"group_size": 32}, r"group_size = 32 has a meaning for per-group only, not for per-tensor"),
        ({"granularity": "per-group", "group_size": 0}, r"group_size = 0: expected a positive integer"),
        (
            {"granularity": "per-group", "dynamic": True},
            r"per-group scales are those of constants: set dynamic = false",
        ),
        ({"granularity": "per-group", "axis": 0}, r"axis = 0 has a meaning for per-channel only, not for per-group"),
    ],
    ids=[
        "dtype",
        "granularity",
        "range",
        "axis-per-tensor",
        "axis-per-token",
        "static-per-token",
        "static-per-sample",
        "group-per-tensor",
        "empty-group",
        "dynamic-per-group",
        "axis-per-group",
    ],
)
def test_invalid_spec_says_what_would_work(fields, message):
    with pytest.raises(ConfigError, match=message):
        QuantSpec(**fields)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"symetric": True}, r"unknown key 'symetric': did you mean 'symmetric'\? Known: axis, dtype"),
        ({"dtype": 8}, r"dtype = 8: expected str, got int"),
        ({"symmetric": "yes"}, r"symmetric = 'yes': expected bool, got str"),
        ({"symmetric": 1}, r"symmetric = 1: expected bool, got int"),
        ({"granularity": "per-channel", "axis": True}, r"axis = True: expected int, got bool"),
        ({"granularity": "per-channel", "axis": 1.0}, r"axis = 1.0: expected int, got float"),
        ({"options": "bins=5"}, r"options = 'bins=5': expected dict, got str"),
        ({"dtype": ["int8"]}, r"dtype = \['int8'\]: expected str, got list"),
    ],
    ids=["unknown-key", "int-name", "text-flag", "int-flag", "flag-axis", "float-axis", "text-options", "list-name"],
)
def test_from_dict_names_the_key_and_the_type(data, message):
    with pytest.raises(ConfigError, match=message):
        QuantSpec.from_dict(data)


def test_dict_round_trip_through_json():
    spec = QuantSpec(
        dtype="uint8",
        granularity="per-channel",
        axis=-2,
        observer="histogram",
        options=(("bins", 1024), ("method", "mse")),
    )
    assert QuantSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_per_group_has_a_size_and_no_other_granularity_does():
    assert QuantSpec(granularity="per-group").group_size == 32
    spec = QuantSpec(dtype="int4", granularity="per-group", group_size=128)
    assert QuantSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert "group_size" not in QuantSpec(granularity="per-channel").to_dict()


def test_order_of_options_does_not_matter():
    first = QuantSpec.from_dict({"options": {"a": 1, "b": 2}})
    second = QuantSpec.from_dict({"options": {"b": 2, "a": 1}})
    assert first == second
    assert hash(first) == hash(second)


def test_float8_has_no_zero_point():
    stated, found = torch.finfo(torch.float8_e4m3fn), FORMATS["float8_e4m3fn"]
    assert (found.minimum, found.maximum, found.signed, found.packed) == (stated.min, stated.max, True, False)
    with pytest.raises(ConfigError, match="float8_e4m3fn has no zero point: set symmetric = true"):
        QuantSpec(dtype="float8_e4m3fn")
