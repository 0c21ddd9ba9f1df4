import copy
import json

import models
import pytest
import torch
from captured import captured
from torch import nn

from fxquant.errors import ArtifactError
from fxquant.graph import edit, serial
from fxquant.graph.capture import capture


def tensors_of(gm):
    return {str(node.target): edit.get_tensor(gm, node) for node in gm.graph.nodes if node.op == "get_attr"}


def through_json(gm):
    return serial.from_data(json.loads(json.dumps(serial.to_data(gm), allow_nan=False)), tensors_of(gm))


@pytest.fixture(scope="module")
def mlp():
    model, inputs = models.mlp()
    return capture(model, inputs)


@pytest.fixture
def data(mlp):
    return copy.deepcopy(serial.to_data(mlp))


def node(data, op):
    return next(entry for entry in data["nodes"] if entry["op"] == op)


@pytest.mark.parametrize("name", ["bert-classifier", "t5", "convnet"])
def test_a_captured_model_survives(name):
    _, inputs, gm = captured(name)
    back = through_json(gm)
    for left, right in zip(models.tensors(gm(**inputs)), models.tensors(back(**inputs)), strict=True):
        assert torch.equal(left, right)
    assert type(back(**inputs)) is type(gm(**inputs))
    for left, right in zip(gm.graph.nodes, back.graph.nodes, strict=True):
        assert (left.name, left.op, str(left.target)) == (right.name, right.op, str(right.target))
        assert edit.info(left) == edit.info(right)
        assert edit.path_of(left) == edit.path_of(right)
    assert serial.to_data(back) == serial.to_data(gm)


def test_the_same_graph_gives_the_same_data(mlp):
    assert json.dumps(serial.to_data(mlp)) == json.dumps(serial.to_data(through_json(mlp)))


def test_tensors_are_shared_and_keep_their_kind(mlp):
    back = through_json(mlp)
    for name, tensor in tensors_of(mlp).items():
        assert edit.get_tensor(back, next(n for n in back.graph.nodes if n.target == name)) is tensor
    assert dict(back.named_parameters()).keys() == dict(mlp.named_parameters()).keys()


def test_infinite_and_special_arguments_survive():
    class Special(nn.Module):
        def forward(self, x):
            y = torch.full_like(x, float("-inf")).to(torch.float64)
            return torch.where(x > 0, x, y), x[:, None, ..., 1:], x.new_zeros(3, dtype=torch.int8)

    gm = capture(Special(), (torch.randn(4, 5),))
    x = torch.randn(4, 5)
    for left, right in zip(gm(x), through_json(gm)(x), strict=True):
        assert torch.equal(left, right)
        assert left.dtype == right.dtype


def test_facts_survive_and_sizes_are_those_of_the_example(mlp):
    gm = edit.clone(mlp)
    last = next(n for n in gm.graph.nodes if n.target is torch.ops.aten.relu.default)
    edit.mark(last, claim={"id": "a", "specs": {"x": {"options": {}}}})
    edit.mark(gm, recipe={"name": "static"})
    back = through_json(gm)
    twin = next(n for n in back.graph.nodes if n.name == last.name)
    assert edit.marks(twin)["claim"] == edit.marks(last)["claim"]
    assert edit.info(twin).shape == (4, 32)
    assert edit.info(twin).dynamic == (True, False)
    assert edit.marks(back) == edit.marks(gm)
    assert "stack_trace" not in twin.meta


def test_module_names_that_are_no_identifiers_survive():
    class Names(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleDict({"up-down/1": nn.Linear(3, 3), "0": nn.Linear(3, 3)})

        def forward(self, x):
            return self.parts["0"](self.parts["up-down/1"](x))

    gm = capture(Names(), (torch.randn(2, 3),))
    x = torch.randn(2, 3)
    assert torch.equal(gm(x), through_json(gm)(x))


def test_a_graph_with_modules_cannot_be_saved(mlp):
    gm = edit.clone(mlp)
    gm.add_submodule("observers", nn.Identity())
    first = next(iter(gm.graph.nodes))
    with gm.graph.inserting_after(first):
        gm.graph.call_module("observers", (first,))
    with pytest.raises(ArtifactError, match=r"node %observers cannot be saved: it is a call_module of observers"):
        serial.to_data(gm)


def test_what_cannot_be_saved_is_named(mlp):
    gm = edit.clone(mlp)
    relu = next(n for n in gm.graph.nodes if n.target is torch.ops.aten.relu.default)
    relu.target = torch.relu
    with pytest.raises(ArtifactError, match=r"node %relu in module act cannot be saved: it calls relu"):
        serial.to_data(gm)


RESERVED = ["graph", "code", "forward", "meta", "training", "_buffers.x", "up.forward", "a.__class__", "__init__.x"]
INJECTED = ['a"); import os; ("', "a.b'", "a\\", "a\nb", "a..b", "", ".", "a.\u2028", "\ud800"]


@pytest.mark.parametrize("name", [*RESERVED, *INJECTED])
def test_a_tensor_cannot_have_every_name(data, name):
    node(data, "get_attr")["target"] = name
    tensors = dict.fromkeys(serial.constants(data), torch.zeros(1))
    with pytest.raises(ArtifactError, match="is no name that a tensor of a graph can have"):
        serial.from_data(data, tensors)


def test_a_tensor_cannot_be_a_module_too(data):
    first, second = [entry for entry in data["nodes"] if entry["op"] == "get_attr"][:2]
    first["target"], second["target"] = "a", "a.b"
    with pytest.raises(ArtifactError, match=r"'a.b' is a tensor and a module at the same time"):
        serial.from_data(data, dict.fromkeys(serial.constants(data), torch.zeros(1)))


def change(kind, /, **changes):
    def apply(data):
        node(data, kind).update(changes)

    return apply


def duplicate(data):
    data["nodes"].insert(1, dict(data["nodes"][0]))


def value(**changes):
    good = {"dtype": "float32", "shape": [1], "dynamic": [False]}
    return change("call_function", marks={"value": {**good, **changes}})


CODE = "x\n    import os"
HOSTILE = {
    "node-name": (change("placeholder", name=CODE), "its name is no identifier"),
    "keyword": (change("placeholder", name="import"), "its name is no identifier"),
    "self": (change("placeholder", name="self"), "its name is no identifier"),
    "signature-name": (change("placeholder", name="_fxquant_signature"), "its name is no identifier"),
    "no-name": (change("placeholder", name=None), "its name is no identifier"),
    "twice": (duplicate, "its name is no identifier, or taken"),
    "module": (change("call_function", op="call_module"), "'call_module' is no kind of node"),
    "method": (change("call_function", op="call_method", target="backward"), "'call_method' is no kind of node"),
    "list-op": (change("call_function", op=["call_function"]), "is no kind of node"),
    "callee": (change("call_function", target="os.system"), r"it calls 'os.system', which an artifact cannot"),
    "arguments": (change("call_function", args="ls"), "its arguments are no list"),
    "later-node": (change("call_function", args=["%output"]), "no reference to an earlier node"),
    "keyword-code": (change("call_function", args=[], kwargs={"a=1); import os; (b": 1}), "has no argument"),
    "get-attr-arguments": (change("get_attr", args=[1]), "a get_attr takes no arguments"),
    "output": (change("output", args=[1]), "an output takes the list of what the graph returns"),
    "no-output": (lambda data: data["nodes"].pop(), "does not end with its only output node"),
    "no-nodes": (lambda data: data["nodes"].clear(), "a graph has 0 placeholders, and its signature 1 inputs"),
    "no-placeholder": (lambda data: data.update(nodes=[]), "a graph has 0 placeholders"),
    "marks": (change("call_function", marks=[1]), "its marks are no object"),
    "path": (change("call_function", marks={"path": 'a"b'}), "makes no sense"),
    "dtype": (value(dtype="load"), "makes no sense"),
    "huge-shape": (value(shape=[10**30]), "makes no sense"),
    "negative-shape": (value(shape=[-1]), "makes no sense"),
    "rank": (value(shape=[1] * 1000, dynamic=[False] * 1000), "makes no sense"),
    "shape-type": (value(shape="ab", dynamic="cd"), "makes no sense"),
    "graph-marks": (lambda data: data.pop("marks"), "a graph has no marks"),
    "parameter-name": (lambda data: data["signature"]["parameters"][0].update(name=""), "is no parameter"),
    "parameter-default": (lambda data: data["signature"]["parameters"][0].update(default=[]), "is no parameter"),
    "signature": (lambda data: data.pop("signature"), "call signature of a graph cannot be read"),
    "class": (
        lambda data: data["signature"].update(
            outputs={"kind": "output", "class": "os.system", "keys": [], "items": []}
        ),
        "'os.system': only the ModelOutputs of transformers are built",
    ),
}


@pytest.mark.parametrize(("alter", "text"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_data_is_refused(data, mlp, alter, text):
    alter(data)
    with pytest.raises(ArtifactError, match=text):
        serial.from_data(data, tensors_of(mlp))


@pytest.mark.parametrize("data", [None, [], {}, {"nodes": {}}, {"nodes": [1]}], ids=str)
def test_what_is_no_graph_at_all_is_refused(data):
    with pytest.raises(ArtifactError, match="is no graph: expected an object with a list of nodes"):
        serial.constants(data)
