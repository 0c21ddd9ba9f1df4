"""Rules and limits: what they accept, and which specs a kernel refuses."""

import pytest

from fxquant.backends.rules import Limits, OpRule, Vocabulary, read_limits
from fxquant.errors import ConfigError
from fxquant.spec import QuantSpec

VOCABULARY = Vocabulary(
    {"linear": ("x", "weight", "bias", "output"), "attention": ("query", "key", "value", "mask", "output")},
    ("linear_int8", "attention_int8"),
    ("minmax",),
)
SPECS = ("activation", "weight")
WEIGHT = QuantSpec(dtype="int8", granularity="per-channel", axis=0, symmetric=True)
TOKEN = QuantSpec(dtype="uint8", granularity="per-token", dynamic=True)


def test_a_rule():
    data = {"use": "linear", "kernel": "linear_int8", "x": "activation", "weight": "weight"}
    rule = OpRule.from_dict(data, SPECS, VOCABULARY)
    assert rule == OpRule(use="linear", kernel="linear_int8", roles={"x": "activation", "weight": "weight"})
    assert rule.to_dict() == data


def test_a_rule_that_keeps_its_op_in_float():
    data = {"use": "attention", "note": "the kernel is float"}
    rule = OpRule.from_dict(data, SPECS, VOCABULARY)
    assert (rule.kernel, rule.roles, rule.note) == (None, {}, "the kernel is float")
    assert rule.to_dict() == data


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({}, r"the key 'use' is missing: expected a string"),
        ({"use": 3}, r"use = 3: expected a string, got int"),
        ({"use": "linaer"}, r"use = 'linaer' is no known op: did you mean 'linear'\? Known: attention, linear"),
        (
            {"use": "linear", "wieght": "weight"},
            r"unknown key 'wieght': did you mean 'weight'\? Known: bias, kernel, note, output, weight, x",
        ),
        ({"use": "linear", "x": "activaton"}, r"x = 'activaton' is no known spec: did you mean 'activation'\?"),
        ({"use": "linear", "x": 8}, r"x = 8: expected a string, got int"),
        (
            {"use": "linear", "x": "activation", "kernel": "linear_int4"},
            r"kernel = 'linear_int4' is no known kernel: did you mean 'linear_int8'\?",
        ),
        ({"use": "linear", "x": "activation", "kernel": False}, r"kernel = False: expected a string, got bool"),
        ({"use": "linear", "x": "activation", "note": 1}, r"note = 1: expected a string, got int"),
        ({"use": "linear"}, r'no role is quantized: say why in note = "…", or name a role of x, weight, bias, output'),
        ({"use": "linear", "note": " "}, r"no role is quantized"),
    ],
    ids=[
        "no op",
        "op type",
        "unknown op",
        "unknown role",
        "unknown spec",
        "spec type",
        "unknown kernel",
        "kernel type",
        "note type",
        "no note",
        "blank note",
    ],
)
def test_wrong_rules(data, text):
    with pytest.raises(ConfigError, match=text):
        OpRule.from_dict(data, SPECS, VOCABULARY)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"dtpye": "int8"}, r"unknown key 'dtpye': did you mean 'dtype'\? Known: axis, dtype, dynamic, granularity, "),
        ({"observer": "minmax"}, r"unknown key 'observer'"),
        ({"dtype": "int9"}, r"dtype = 'int9' is not known: did you mean 'int"),
        ({"dtype": ["int8", 8]}, r"dtype = 8: expected str, got int"),
        ({"dtype": []}, r"dtype = \[\]: expected at least one value"),
        ({"granularity": "per-row"}, r"granularity = 'per-row' is not known"),
        ({"symmetric": "yes"}, r"symmetric = 'yes': expected bool, got str"),
        ({"axis": "0"}, r"axis = '0': expected int, got str"),
        ({"inner_multiple_of": "4"}, r"inner_multiple_of = '4': expected an integer, got str"),
        ({"inner_multiple_of": 0}, r"inner_multiple_of = 0: expected a positive integer"),
    ],
    ids=[
        "unknown field",
        "no limit on observers",
        "unknown dtype",
        "dtype type",
        "empty list",
        "unknown granularity",
        "symmetric type",
        "axis type",
        "multiple type",
        "multiple of zero",
    ],
)
def test_wrong_limits(data, text):
    with pytest.raises(ConfigError, match=text):
        Limits.from_dict(data)


def test_limits_round_trip():
    data = {"dtype": ["uint8", "int8"], "symmetric": [True], "axis": [0], "inner_multiple_of": 4}
    assert Limits.from_dict(data).to_dict() == data
    assert Limits.from_dict({"symmetric": True}) == Limits(allowed={"symmetric": (True,)})


@pytest.mark.parametrize(
    ("limits", "spec", "shape", "text"),
    [
        (
            {"dtype": ["uint8", "int8"]},
            QuantSpec(dtype="int32"),
            None,
            "x.dtype = uint8 or int8, the recipe asks for int32",
        ),
        ({"symmetric": True}, TOKEN, None, "x.symmetric = true, the recipe asks for false"),
        ({"dynamic": False}, TOKEN, None, "x.dynamic = false, the recipe asks for true"),
        ({"granularity": "per-tensor"}, TOKEN, None, "x.granularity = per-tensor, the recipe asks for per-token"),
        ({"axis": 1}, WEIGHT, (8, 4), "x.axis = 1, the recipe asks for 0"),
        ({"axis": 0}, QuantSpec(granularity="per-channel", axis=2), (8, 4), "x.axis = 0, the recipe asks for 2"),
        ({"range": "full"}, WEIGHT, None, "x.range = full, the recipe asks for restricted"),
    ],
    ids=["dtype", "symmetric", "dynamic", "granularity", "axis", "axis beyond", "range"],
)
def test_refused_specs(limits, spec, shape, text):
    assert Limits.from_dict(limits).breach("k", "x", spec, shape) == f"kernel k takes {text}"


@pytest.mark.parametrize(
    ("limits", "spec", "shape"),
    [
        ({}, TOKEN, (3, 5)),
        ({"dtype": ["uint8", "int8"], "granularity": ["per-tensor", "per-token"]}, TOKEN, (3, 5)),
        ({"axis": 0}, QuantSpec(symmetric=True), (8, 4)),
        ({"axis": 0}, QuantSpec(granularity="per-channel", axis=-2), (8, 4)),
        ({"axis": -1}, QuantSpec(granularity="per-channel", axis=1), (8, 4)),
        ({"range": "full"}, QuantSpec(symmetric=False), None),
        ({"range": "full"}, QuantSpec(dtype="uint8", symmetric=True), None),
        ({"inner_multiple_of": 4}, WEIGHT, (3, 8)),
        ({"inner_multiple_of": 4}, WEIGHT, None),
        ({"inner_multiple_of": 4}, WEIGHT, ()),
    ],
    ids=[
        "no limits",
        "one of several",
        "no axis per tensor",
        "axis from the end",
        "limit from the end",
        "range of affine",
        "range of unsigned",
        "multiple",
        "unknown shape",
        "scalar",
    ],
)
def test_granted_specs(limits, spec, shape):
    assert Limits.from_dict(limits).breach("k", "x", spec, shape) is None


def test_a_role_that_must_stay_float():
    limits = Limits.from_dict({"dtype": "float"})
    text = limits.breach("k", "x", QuantSpec(dtype="uint8"), None)
    assert text == "kernel k takes x.dtype = float, the recipe asks for uint8"
    assert Limits.from_dict(limits.to_dict()) == limits


def test_sizes_of_groups():
    limits = Limits.from_dict({"group_size": [32, 128]})
    assert limits.breach("k", "weight", QuantSpec(granularity="per-group", group_size=128), None) is None
    assert limits.breach("k", "weight", QuantSpec(granularity="per-channel"), None) is None
    text = limits.breach("k", "weight", QuantSpec(granularity="per-group", group_size=64), None)
    assert text == "kernel k takes weight.group_size = 32 or 128, the recipe asks for 64"


def test_an_axis_from_the_end_is_not_guessed_without_a_shape():
    spec = QuantSpec(granularity="per-channel", axis=-2)
    assert "axis = 0, the recipe asks for -2" in str(Limits.from_dict({"axis": 0}).breach("k", "weight", spec, None))


def test_a_size_that_the_kernel_cannot_do():
    text = Limits.from_dict({"inner_multiple_of": 4}).breach("k", "weight", WEIGHT, (8, 6))
    assert text == "kernel k takes a weight whose last axis is a multiple of 4, this one is [8, 6]"


def test_roles_of_limits_are_those_of_the_ops_on_the_kernel():
    rules = (OpRule(use="linear", kernel="linear_int8", roles={"x": "activation"}),)
    with pytest.raises(
        ConfigError, match=r"\[kernel\.linear_int8\]: unknown key 'query': Known: bias, output, weight, x"
    ):
        read_limits({"linear_int8": {"query": {}}}, rules, VOCABULARY)


def test_limits_of_a_kernel_that_no_rule_uses():
    limits = read_limits({"attention_int8": {"query": {"dtype": "int8"}}}, (), VOCABULARY)
    assert limits == {"attention_int8": {"query": Limits(allowed={"dtype": ("int8",)})}}
