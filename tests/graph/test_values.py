import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import fx

from fxquant.errors import ArtifactError
from fxquant.graph import values

GRAPH = fx.Graph()
NODES = {name: GRAPH.placeholder(name) for name in ("x", "mask_1")}

CONSTANTS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**64), 2**64),
    st.floats(allow_nan=False),
    st.text(),
    st.just(...),
    st.sampled_from([torch.int8, torch.float32, torch.bool, torch.strided, torch.channels_last]),
    st.sampled_from([torch.device("cpu"), torch.device("cuda:1"), torch.device("meta")]),
    st.sampled_from(list(NODES.values())),
)
BOUNDS = st.one_of(st.none(), st.integers(-9, 9))
VALUES = st.recursive(
    st.one_of(CONSTANTS, st.builds(slice, BOUNDS, BOUNDS, BOUNDS)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.lists(inner, max_size=3).map(tuple)),
    max_leaves=8,
)


def through_json(value):
    return values.decode(json.loads(json.dumps(values.encode(value), allow_nan=False)), NODES)


def with_types(value):
    """Tell apart what == does not: True from 1, 1 from 1.0, -0.0 from 0.0."""
    if isinstance(value, (list, tuple)):
        return type(value), [with_types(each) for each in value]
    return type(value), repr(value) if isinstance(value, float) else value


@given(VALUES)
def test_values_survive_json(value):
    assert with_types(through_json(value)) == with_types(value)


def test_nan_survives_json():
    assert math.isnan(through_json([math.nan])[0])


def test_lists_of_a_graph_are_lists():
    node = GRAPH.call_function(torch.ops.aten.view.default, (NODES["x"], [2, -1]))
    assert values.encode(node.args[1]) == [2, -1]


@pytest.mark.parametrize("value", [1j, {"a": 1}, object(), torch.ones(1)], ids=["complex", "dict", "object", "tensor"])
def test_other_values_are_refused(value):
    with pytest.raises(ArtifactError, match=r"it holds a .*(complex|dict|object|Tensor); an artifact can hold nodes"):
        values.encode([value])


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("%y", "'%y' is no reference to an earlier node"),
        ("x", "'x' is no reference to an earlier node"),
        ({"dtype": "load"}, "'load' is no dtype of this torch: .*Known"),
        ({"dtype": "__class__"}, "'__class__' is no dtype"),
        ({"layout": "float32"}, "'float32' is no layout"),
        ({"memory_format": ["x"]}, "is no memory_format"),
        ({"device": "cpu; import os"}, "is no device"),
        ({"device": "toaster"}, "is no device"),
        ({"float": "1"}, "is no value of a known form"),
        ({"float": []}, "is no value of a known form"),
        ({"str": 1}, "is no value of a known form"),
        ({"slice": [1, 2]}, "is no value of a known form"),
        ({"tuple": "ab"}, "is no value of a known form"),
        ({"ellipsis": False}, "is no value of a known form"),
        ({"call": "os.system"}, "is no value of a known form"),
        ({"str": "a", "float": "nan"}, "is no value of a known form"),
        ({}, "is no value of a known form"),
        (2**65, "an integer of more than 64 bits"),
    ],
)
def test_malformed_data_is_refused(data, text):
    with pytest.raises(ArtifactError, match=text):
        values.decode(data, NODES)


def test_deep_nesting_is_refused():
    data = 1
    for _ in range(100):
        data = [data]
    with pytest.raises(ArtifactError, match="at most 16 deep"):
        values.decode(data, NODES)
