import json
import math
from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.modeling_outputs import BaseModelOutput, ModelOutput

from fxquant.errors import ArtifactError, InputError
from fxquant.graph import structure

Pair = namedtuple("Pair", ["left", "right"])

constants = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3)
values = st.recursive(
    constants | st.builds(lambda n: torch.full((), n), st.integers(0, 9)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return a is b
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@given(values)
def test_build_undoes_describe_through_json(value):
    leaves, data = structure.describe(value)
    data = json.loads(json.dumps(data, allow_nan=False))
    assert same(structure.build(data, leaves), value)
    assert structure.count(data) == len(leaves) == len(list(structure.names(data)))


def test_model_output_keeps_its_class_and_the_fields_that_are_set():
    value = BaseModelOutput(last_hidden_state=torch.ones(1), attentions=(torch.zeros(1), torch.zeros(2)))
    leaves, data = structure.describe(value)
    built = structure.build(data, leaves)
    assert type(built) is BaseModelOutput
    assert list(built) == ["last_hidden_state", "attentions"]
    assert built.attentions[1] is value.attentions[1]
    assert list(structure.names(data)) == ["last_hidden_state", "attentions.0", "attentions.1"]


def test_named_tuples_come_back():
    pooled = torch.ones(2, 2).max(dim=0)
    leaves, data = structure.describe((Pair(torch.ones(1), 2), pooled))
    pair, again = structure.build(data, leaves)
    assert pair.left is leaves[0] and pair.right == 2 and type(pair).__name__ == "Pair"
    assert type(again) is torch.return_types.max and again.indices is pooled.indices


def test_floats_that_json_lacks_come_back():
    _, data = structure.describe([math.inf, -math.inf, math.nan])
    high, low, nan = structure.build(json.loads(json.dumps(data, allow_nan=False)), [])
    assert (high, low) == (math.inf, -math.inf) and math.isnan(nan)


@pytest.mark.parametrize("name", ["transformers.no_such_module.Output", "transformers.modeling_outputs.NoSuchOutput"])
def test_class_that_is_gone_becomes_a_generic_output(name):
    data = {"kind": "output", "class": name, "keys": ["a", "b"], "items": [{"kind": "leaf"}, {"kind": "leaf"}]}
    output = structure.build(data, [1, 2])
    assert (output.a, output["b"], output[0], output[:2], output.to_tuple()) == (1, 2, 1, (1, 2), (1, 2))
    with pytest.raises(AttributeError, match=r"no field 'c'.*Known: a, b"):
        _ = output.c


def test_fields_that_the_class_lacks_make_a_generic_output():
    data = {"kind": "output", "class": "transformers.modeling_outputs.BaseModelOutput", "keys": ["new"]}
    output = structure.build({**data, "items": [{"kind": "leaf"}]}, [1])
    assert type(output) is structure.Output and output.new == 1


def test_output_class_of_the_users_own_becomes_a_generic_output():
    @dataclass
    class Own(ModelOutput):
        score: torch.Tensor | None = None

    leaves, data = structure.describe(Own(score=torch.ones(1)))
    assert data["class"] is None
    assert structure.build(data, leaves).score is leaves[0]


def test_generic_output_is_a_pytree():
    output = structure.Output(a=torch.ones(1), b=torch.zeros(1))
    doubled = torch.utils._pytree.tree_map(lambda t: t * 2, output)
    assert type(doubled) is structure.Output and doubled.a.item() == 2


@pytest.mark.parametrize(
    "name",
    ["os.system", "transformers.utils.import_utils.os.system", "transformers.BertModel", "builtins.eval", "x", 3, ""],
)
def test_hostile_class_is_not_built(name):
    data = {"kind": "output", "class": name, "keys": ["a"], "items": [{"kind": "leaf"}]}
    if name == "transformers.utils.import_utils.os.system":  # import_utils is a module, and os no module inside it
        assert type(structure.build(data, [1])) is structure.Output
        return
    with pytest.raises(ArtifactError, match="ModelOutput"):
        structure.build(data, [1])


@pytest.mark.parametrize(
    "fields",
    [["__class__"], ["a b"], ["a", "a"], "ab", [1], ["lambda"], None],
    ids=str,
)
def test_hostile_named_tuple_is_not_built(fields):
    items = [{"kind": "leaf"}] * (len(fields) if fields else 1)
    with pytest.raises(ArtifactError, match="cannot be built"):
        structure.build({"kind": "namedtuple", "class": "P", "fields": fields, "items": items}, [1, 2])


@pytest.mark.parametrize("name", ["torch.return_types.__name__", "torch.return_types.max.mro", "torch.return_types.qr"])
def test_named_tuple_of_torch_must_exist_with_as_many_fields(name):
    data = {"kind": "namedtuple", "class": name, "fields": [], "items": [{"kind": "leaf"}]}
    with pytest.raises(ArtifactError, match="cannot be built"):
        structure.build(data, [1])


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        {},
        {"kind": "code"},
        {"kind": "list"},
        {"kind": "list", "items": [3]},
        {"kind": "dict", "keys": ["a"], "items": []},
        {"kind": "dict", "items": []},
        {"kind": "constant", "value": [1]},
    ],
    ids=str,
)
def test_damaged_data_is_an_artifact_error(data):
    with pytest.raises(ArtifactError, match="structure"):
        structure.build(data, [])


def test_endless_nesting_is_an_artifact_error():
    data = {"kind": "leaf"}
    for _ in range(5000):
        data = {"kind": "list", "items": [data]}
    with pytest.raises(ArtifactError, match="at most 64 deep"):
        structure.build(data, [])


def test_unknown_type_is_named_with_its_place():
    with pytest.raises(InputError, match=r"the inputs\['a'\]\[1\] is a builtins.object; expected a tensor"):
        structure.describe({"a": [1, object()]}, "the inputs")
