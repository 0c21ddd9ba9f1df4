"""Every ATen call has all its arguments, in one place each."""

import operator

import pytest
import torch
from canonical import story
from captured import captured
from golden import check_golden
from torch import fx, nn

from fxquant.graph import edit
from fxquant.passes.canonical_arguments import NormalizeArguments

aten = torch.ops.aten


def one_call(target, *args, **kwargs):
    """Return a graph of one call whose arguments called "x" are its input."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    args = tuple(x if arg == "x" else arg for arg in args)
    node = graph.call_function(target, args, {name: x if arg == "x" else arg for name, arg in kwargs.items()})
    graph.output(node)
    return fx.GraphModule(nn.Module(), graph), node, x


@pytest.mark.parametrize(
    ("target", "args", "kwargs", "positional", "named"),
    [
        (aten.layer_norm.default, ("x", [4]), {}, ("x", [4], None, None, 1e-5, True), {}),
        (aten.layer_norm.default, ("x", [4]), {"eps": 0.1}, ("x", [4], None, None, 0.1, True), {}),
        (aten.linear.default, (), {"weight": "x", "input": "x"}, ("x", "x", None), {}),
        (aten.gelu.default, ("x",), {}, ("x",), {"approximate": "none"}),
        (aten.add.Tensor, ("x",), {"alpha": 3, "other": 2}, ("x", 2), {"alpha": 3}),
        (aten.softmax.int, ("x", -1), {}, ("x", -1, None), {}),
        (aten.mean.dim, ("x", -1), {}, ("x", [-1], False), {"dtype": None}),
        (aten.avg_pool2d.default, ("x", 3), {}, ("x", [3, 3], [], [0, 0], False, True, None), {}),
    ],
    ids=["defaults", "keyword", "required-by-name", "keyword-only", "given-kept", "dtype", "one-dim", "square-window"],
)
def test_arguments_are_spelled_out(target, args, kwargs, positional, named):
    gm, node, x = one_call(target, *args, **kwargs)
    assert NormalizeArguments().apply(gm) == 1
    assert node.args == tuple(x if arg == "x" else arg for arg in positional)
    assert node.kwargs == named
    assert NormalizeArguments().apply(gm) == 0, "a second time there is nothing left to do"


@pytest.mark.parametrize(
    ("target", "args"), [(operator.getitem, ("x", 0)), (torch.relu, ("x",))], ids=["operator", "torch-function"]
)
def test_other_calls_stay(target, args):
    gm, node, x = one_call(target, *args)
    assert NormalizeArguments().apply(gm) == 0
    assert node.args[0] is x


def test_a_spelled_out_call_computes_the_same():
    gm, *_ = one_call(aten.contiguous.default, "x")
    x = torch.randn(3, 4).t()
    NormalizeArguments().apply(gm)
    gm.recompile()
    assert gm(x).is_contiguous() and torch.equal(gm(x), x)


@pytest.mark.parametrize("name", ["bert", "gpt2", "convnet"])
def test_every_call_of_a_model_has_every_argument_of_its_schema(name):
    gm = edit.clone(captured(name)[2])
    NormalizeArguments().apply(gm)
    found = [node for node in gm.graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
    assert found
    for node in found:
        schema = node.target._schema.arguments
        assert len(node.args) == sum(not argument.kwarg_only for argument in schema), node.format_node()
        assert list(node.kwargs) == [argument.name for argument in schema if argument.kwarg_only], node.format_node()


def test_golden():
    gm, *_ = one_call(aten.layer_norm.default, "x", [4], eps=1e-12)
    check_golden("normalize_arguments", story("normalize_arguments", gm))
