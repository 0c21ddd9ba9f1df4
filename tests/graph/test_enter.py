"""Dynamo's graphs become captured ones: ATen calls, tensors of modules by name, sizes read from tensors."""

import pytest
import torch
from torch import nn

import fxquant as fxq
from fxquant.graph import edit
from fxquant.graph.enter import enter
from fxquant.graph.text import to_text

aten = torch.ops.aten


def entered(function, *inputs, dynamic=True):
    """Return what `enter` makes of the first graph of a compiled function, and the arguments it was called with."""
    torch._dynamo.reset()
    found, given = [], []

    def backend(gm, tensors):
        found.append(enter(gm, tensors))

        def run(*args):
            given.append(args)
            return gm(*args)

        return run

    torch.compile(function, backend=backend, dynamic=dynamic)(*inputs)
    return found[0], given[0]


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.ModuleList([nn.Linear(4, 3)])
        self.register_buffer("shift", torch.ones(3))
        self.eval()

    def forward(self, x):
        return self.layer[0](x) + self.shift, x.shape[0] * 2, None


X = torch.randn(5, 4)


def test_the_graph_reads():
    found, _ = entered(Small(), X)
    assert to_text(found.graph) == (
        "%l_x_ = placeholder  # float32[?0, 4]\n"
        "%sym_size = aten.sym_size.int(%l_x_, 0)  # ?0\n"
        "%layer.0.weight = get_attr  # float32[3, 4] layer.0\n"
        "%layer.0.bias = get_attr  # float32[3] layer.0\n"
        "%shift = get_attr  # float32[3]\n"
        "%linear = aten.linear.default(%l_x_, %layer.0.weight, %layer.0.bias)  # float32[?0, 3] layer.0\n"
        "%add = aten.add.Tensor(%linear, %shift)  # float32[?0, 3]\n"
        "%mul = operator.mul(%sym_size, 2)  # 2*?0\n"
        "return (%add, %mul)\n"
    )


def test_it_computes_what_dynamo_asked_for():
    model = Small()
    found, args = entered(model, X)
    result, twice = found.graph(**found.keywords(args))
    assert torch.equal(result, model(X)[0]) and twice == 10


def test_it_is_a_captured_graph():
    found, args = entered(Small(), X)
    prepared = fxq.prepare(found.graph, "reference", "weight-only")
    fxq.lower(fxq.convert(prepared))(**found.keywords(args))
    with pytest.raises(fxq.InputError, match=r"dimension 1 of 'l_x_' has size 3"):
        found.graph(l_x_=torch.zeros(2, 3))


def test_other_parameters_take_the_place_of_its_own():
    first, second = Small(), Small()
    found, args = entered(first, X)
    held = {id(tensor): name for name, tensor in first.state_dict(keep_vars=True).items()}
    others = [second.state_dict(keep_vars=True)[held[id(arg)]] if id(arg) in held else arg for arg in args]
    assert torch.equal(found.holding(others)(**found.keywords(args))[0], second(X)[0])
    assert torch.equal(found.graph(**found.keywords(args))[0], first(X)[0])


def test_an_integer_that_is_no_size_travels_as_a_length():
    def shifted(x, count):
        return x + torch.arange(count).sum()

    found, args = entered(shifted, X, 7)
    assert len(found.lengths) == 1
    (result,) = found.graph(**found.keywords(args))
    assert torch.equal(result, X + 21)
    changed = [11 if isinstance(arg, int) else arg for arg in args]
    assert torch.equal(found.graph(**found.keywords(changed))[0], X + 55)


def test_a_buffer_that_the_graph_writes_to_stays_an_input():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(4))
            self.weight = nn.Parameter(torch.ones(4))

        def forward(self, x):
            self.seen.add_(x.sum(0))
            return x * self.weight

    model = Counting()
    found, args = entered(model, X)
    assert set(found.constants.values()) == {"weight"}
    model.seen.zero_()
    assert torch.equal(found.graph(**found.keywords(args))[0], X)
    assert torch.equal(model.seen, X.sum(0))


def test_switches_of_autograd_are_left_out():
    def function(x):
        with torch.no_grad():
            y = x.cos()
        return y + 1

    found, args = entered(function, X)
    assert [node.target for node in found.graph.graph.nodes if node.op == "call_function"] == [
        aten.cos.default,
        aten.add.Tensor,
    ]
    assert edit.marks(found.graph)["stage"] == "captured"
    assert torch.equal(found.graph(**found.keywords(args))[0], X.cos() + 1)
