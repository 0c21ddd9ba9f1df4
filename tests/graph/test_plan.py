"""Plans are read from generated code; what they cannot say is left to Python."""

import pytest
import torch

from fxquant.graph import plan
from fxquant.graph.plan import CONSTANT, LIST, SLOT

HEAD = "linear_weight = self.linear.weight\n"


def read(*lines):
    return plan.read([f"{line}\n" for line in lines])


def test_calls_slots_and_constants():
    found = read(
        'bias = getattr(self.layer, "0").bias',
        "sym_size_int = torch.ops.aten.sym_size.int(x, 1)",
        "mul = sym_size_int * 3;  sym_size_int = None",
        "add = torch.ops.aten.add.Tensor(x, bias, alpha = -2);  x = bias = None",
        "return _fxquant_signature.unflatten((add, None,))",
    )
    assert (found.inputs, found.given) == (("x", "bias"), 1)
    assert found.returned == (4, None)
    assert found.calls == (
        ("aten::sym_size", "int", ((SLOT, 0), (CONSTANT, 1))),
        ("mul", "", ((SLOT, 2), (CONSTANT, 3))),
        ("aten::add", "Tensor", ((SLOT, 0), (SLOT, 1), (CONSTANT, -2))),
    )


def test_arguments():
    found = read(
        "size = torch.ops.aten.sym_size.int(x, 0)",
        "expand = torch.ops.aten.expand.default(x, [size, -1, 4])",
        "full = torch.ops.aten.full.default([2], inf, dtype = torch.float64, device = device(type='cpu'))",
        "split = torch.ops.aten.split.Tensor(expand, 2)",
        "getitem = split[1]",
        "pad = torch.ops.aten.constant_pad_nd.default(getitem, (0, 1))",
        "convolution = torch.ops.aten.conv1d.default(pad, full)",
        "return _fxquant_signature.unflatten((convolution,))",
    )
    calls = {name: arguments for name, _, arguments in found.calls}
    assert calls["aten::expand"] == ((SLOT, 0), (LIST, ((SLOT, 1), (CONSTANT, -1), (CONSTANT, 4))), (CONSTANT, False))
    assert calls["aten::full"] == (
        (LIST, ((CONSTANT, 2),)),
        *((CONSTANT, each) for each in (float("inf"), torch.float64, None, torch.device("cpu"), None)),
    )
    assert calls["getitem"] == ((SLOT, 4), (CONSTANT, 1))
    ones, zeros = (LIST, ((CONSTANT, 1),)), (LIST, ((CONSTANT, 0),))
    assert calls["aten::conv1d"][2:] == ((CONSTANT, None), ones, zeros, ones, (CONSTANT, 1)), "defaults are filled in"


@pytest.mark.parametrize(
    "line",
    [
        "y = self.observer(x)",
        "y = x.sum()",
        "y = torch.relu(x)",
        "y = wrapped_function(x)",
        "y = torch.ops.aten.relu.default(other(x))",
        "y = x / 2",
        "y = x == 2",
        "y = x[0:2]",
        "if x: y = x",
        "y = -x",
    ],
)
def test_python_runs_what_is_no_plan(line):
    assert read(line, "return _fxquant_signature.unflatten((y,))") is None


@pytest.mark.parametrize("last", ["return y", "return _fxquant_signature.unflatten((3,))", "y = x[0]"])
def test_python_returns_what_is_no_plan(last):
    assert read("y = torch.ops.aten.relu.default(x)", last) is None
