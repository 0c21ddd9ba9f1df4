"""A graph's text says all that matters of it, and nothing that changes from one run to the next."""

import subprocess
import sys

import pytest
import torch
from torch import fx, nn

from fxquant.graph import edit
from fxquant.graph.text import to_text

aten = torch.ops.aten


def built(*, sizes=((2, 4), (2, 8)), rename=""):
    """Return linear(x, weight, None) → gelu with facts, its nodes named as `rename` says."""
    root = nn.Module()
    root.head = nn.Linear(4, 8, bias=False)
    graph = fx.Graph()
    x = graph.placeholder("x")
    weight = graph.get_attr("head.weight")
    linear = graph.create_node("call_function", aten.linear.default, (x, weight, None), {}, name=f"linear{rename}")
    gelu = graph.create_node("call_function", aten.gelu.default, (linear,), {"approximate": "tanh"}, name=f"g{rename}")
    graph.output((gelu,))
    for node, shape in zip((x, linear, gelu), (sizes[0], sizes[1], sizes[1]), strict=True):
        node.meta["val"] = torch.empty(shape)
    weight.meta["val"] = root.head.weight
    edit.mark(linear, path="head")
    return fx.GraphModule(root, graph)


def one_call(target, args, kwargs=None):
    graph = fx.Graph()
    graph.placeholder("x")
    graph.output(graph.call_function(target, args, kwargs or {}))
    return to_text(fx.GraphModule(nn.Module(), graph)).splitlines()[1]


def exported(function, *inputs, **dims):
    class Module(nn.Module):
        def forward(self, *args):
            return function(*args)

    program = torch.export.export(Module(), inputs, dynamic_shapes={"args": tuple(dims.values())}, strict=False)
    return program.graph_module


def test_whole_text():
    assert to_text(built()) == (
        "%x = placeholder  # float32[2, 4]\n"
        "%head.weight = get_attr  # float32[8, 4]\n"
        "%linear = aten.linear.default(%x, %head.weight, None)  # float32[2, 8] head\n"
        "%gelu = aten.gelu.default(%linear, approximate='tanh')  # float32[2, 8]\n"
        "return (%gelu)\n"
    )


def test_node_names_do_not_show():
    assert to_text(built()) == to_text(built(rename="_37"))


def test_weights_do_not_show():
    gm = built()
    text = to_text(gm)
    nn.init.ones_(gm.head.weight)
    assert to_text(gm) == text


@pytest.mark.parametrize("change", ["shape", "argument", "path", "fact"])
def test_what_matters_shows(change):
    gm = built(sizes=((2, 4), (3, 8))) if change == "shape" else built()
    linear = next(node for node in gm.graph.nodes if node.name == "linear")
    if change == "argument":
        next(iter(linear.users)).kwargs = {"approximate": "none"}
    elif change == "path":
        edit.mark(linear, path="body")
    elif change == "fact":
        edit.mark(linear, rule="linear")
    assert to_text(gm) != to_text(built())


def test_facts_are_sorted_json_after_the_path():
    gm = built()
    linear = next(node for node in gm.graph.nodes if node.name == "linear")
    edit.mark(linear, rule="linear", claim={"b": [1, None], "a": True}, value={"dtype": "int8"})
    line = to_text(gm).splitlines()[2]
    assert line.endswith('# float32[2, 8] head {"claim": {"a": true, "b": [1, null]}, "rule": "linear"}')


def test_without_a_traced_value_the_stored_one_is_printed():
    gm = built()
    linear = next(node for node in gm.graph.nodes if node.name == "linear")
    del linear.meta["val"]
    edit.mark(linear, value=edit.TensorInfo(torch.float16, (2, 8), (True, False)).to_dict())
    assert "# float16[?, 8] head" in to_text(gm)


def test_calls_of_one_operator_are_counted_in_order():
    graph = fx.Graph()
    x = graph.placeholder("relu")
    first = graph.call_function(aten.relu.default, (x,))
    second = graph.call_function(aten.relu.default, (first,))
    graph.output(second)
    lines = to_text(fx.GraphModule(nn.Module(), graph)).splitlines()
    assert lines[1:] == [
        "%relu_1 = aten.relu.default(%relu)",
        "%relu_2 = aten.relu.default(%relu_1)",
        "return %relu_2",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.1, "0.1"),
        (1e-12, "1e-12"),
        (-3.4028234663852886e38, "-3.4028234663852886e+38"),
        (float("inf"), "inf"),
        (9223372036854775807, "9223372036854775807"),
        (True, "True"),
        (None, "None"),
        ("tanh", "'tanh'"),
        (torch.float32, "float32"),
        (torch.device("cpu"), "cpu"),
        (torch.strided, "strided"),
        (torch.contiguous_format, "contiguous_format"),
        ([1, [2.0, None]], "[1, [2.0, None]]"),
        ((1, "a"), "(1, 'a')"),
        ({"k": 1}, "{'k': 1}"),
        (slice(None, 3), "slice(None, 3, None)"),
    ],
    ids=repr,
)
def test_literals_are_exact(value, text):
    assert one_call(aten.alias.default, (value,), {"k": value}) == f"%alias = aten.alias.default({text}, k={text})"


def test_modules_methods_and_plain_functions():
    root = nn.Module()
    root.observer = nn.Identity()
    graph = fx.Graph()
    x = graph.placeholder("x")
    seen = graph.call_module("observer", (x,))
    size = graph.call_method("size", (seen, 0))
    graph.output(graph.call_function(torch.relu, (size,)))
    lines = to_text(fx.GraphModule(root, graph)).splitlines()
    assert lines[1] == "%observer = Identity[observer](%x)"
    assert lines[2] == "%size = size(%observer, 0)"
    assert lines[3].startswith("%relu = ") and "0x" not in lines[3]


def test_dynamic_sizes_are_numbered_in_order_of_appearance():
    auto = torch.export.Dim.AUTO
    spec = {0: auto, 1: auto}
    gm = exported(lambda x, y: (x.reshape(-1, 3), y), torch.ones(4, 5, 3), torch.ones(6), x=spec, y={0: auto})
    lines = to_text(gm).splitlines()
    assert lines[0].endswith("# float32[?0, ?1, 3]")
    assert lines[1].endswith("# float32[?2]")
    assert next(line for line in lines if "reshape" in line).endswith("# float32[?0*?1, 3]")


def test_several_results_are_printed_as_a_tuple():
    gm = exported(lambda x: x.split(2)[0], torch.ones(4, 5), x={})
    split, item = to_text(gm).splitlines()[1:3]
    assert split.endswith("# (float32[2, 5], float32[2, 5])")
    assert item.startswith("%getitem = operator.getitem(%split, 0)")


def test_another_process_prints_the_same():
    script = (
        "import torch; from fxquant.graph.capture import capture; from fxquant.graph.text import to_text\n"
        "layers = torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 8)\n"
        "text = to_text(capture(torch.nn.Sequential(*layers), torch.ones(4, 16)))\n"
    )
    names = {}
    exec(script, names)
    command = [sys.executable, "-c", f"{script}print(text, end='')"]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout == names["text"] != ""
