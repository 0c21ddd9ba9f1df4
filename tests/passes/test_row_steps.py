"""Which ops are steps of a row program, and how each is written; near misses are none."""

import pytest
import torch
from graphs import Call, canonical_graph, lowered_graph
from torch import nn
from torch.nn import functional

from fxquant.graph import edit
from fxquant.graph.edit import TensorInfo
from fxquant.kernels.cpu import native
from fxquant.passes.row_steps import leading, read_step, serves, write_program


class Layers(nn.Module):
    """A function of some layers over 8 features."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.six, self.back = nn.Linear(8, 6), nn.Linear(6, 8)
        self.norm, self.table = nn.LayerNorm(8), nn.Embedding(11, 8)
        self.rows = nn.Parameter(torch.randn(3, 8))
        self.function = function

    def forward(self, *inputs):
        return self.function(self, *inputs)


def x(*shape, seed=0):
    return torch.randn(shape or (3, 8), generator=torch.Generator().manual_seed(seed))


def lines(gm):
    """Each step of a graph as a program of its own."""
    steps = [node for node in gm.graph.nodes if read_step(node)]
    return [write_program([node], [])[2].partition("\n")[0] for node in steps]


def lowered(function, *inputs, recipe="dynamic"):
    if not native.available():
        pytest.skip("the steps are the C++ kernels' ops")
    return lowered_graph(Layers(function), *inputs, recipe=recipe)


KERNELS = {
    "linear": (lambda m, x: m.first(x), "dynamic", ["v0 = linear x0 c0 c1 c2 c3 - none uint8 affine restricted"]),
    "linear with gelu": (
        lambda m, x: functional.gelu(m.first(x)),
        "dynamic",
        ["v0 = linear x0 c0 c1 c2 c3 - gelu uint8 affine restricted"],
    ),
    "linear with residual": (
        lambda m, x: m.first(x) + x,
        "dynamic",
        ["v0 = linear x0 c0 c1 c2 c3 x0 none uint8 affine restricted"],
    ),
    "linear without bias": (
        lambda m, x: functional.linear(x, m.first.weight),
        "dynamic",
        ["v0 = linear x0 c0 c1 c2 - - none uint8 affine restricted"],
    ),
    "bytes": (
        lambda m, x: m.second(m.first(x).relu()) + x,
        "static",
        [
            "v0 = quantize x0 c0 c1 0 255 uint8",
            "v0 = linear_bytes x0 c0 c1 c2 c3 c4 c5 - relu c6 c7 0 255 uint8",
            "v0 = linear_bytes x0 c0 c1 c2 c3 c4 c5 x1 none - - 0 0 float32",
        ],
    ),
    "bytes of six columns are not whole groups": (
        lambda m, x: m.back(m.six(x)),
        "static",
        ["v0 = quantize x0 c0 c1 0 255 uint8", "v0 = linear_bytes x0 c0 c1 c2 c3 c4 c5 - none - - 0 0 float32"],
    ),
    "weight-only": (
        lambda m, x: m.first(x),
        "weight-only",
        ["v0 = weight_only x0 c0 c1 - c2 - none 8 8 -"],
    ),
    "weight-only with residual": (
        lambda m, x: functional.silu(m.first(x)) + x,
        "weight-only-int4",
        ["v0 = weight_only x0 c0 c1 c2 c3 - silu 8 8 -", "v0 = add x0 x1"],
    ),
    "activation of columns": (
        lambda m, x: functional.gelu(m.first(x)[:, :4], approximate="tanh") * m.first(x)[:, 4:],
        "dynamic",
        [
            "v0 = linear x0 c0 c1 c2 c3 - none uint8 affine restricted",
            "v0 = columns x0 0 4",
            "v0 = activate x0 gelu_tanh",
            "v0 = columns x0 4 8",
            "v0 = multiply x0 x1",
        ],
    ),
    "weight-only of six features": (lambda m, x: m.back(x[:, :6]), "weight-only", ["v0 = columns x0 0 6"]),
}


@pytest.mark.parametrize("case", KERNELS)
def test_kernels_are_steps(case):
    function, recipe, expected = KERNELS[case]
    assert lines(lowered(function, x(), recipe=recipe)) == expected


def test_a_look_up_is_a_step():
    gm = lowered(lambda m, ids: m.table(ids), torch.tensor([[1, 2], [3, 4]]))
    assert lines(gm) == ["v0 = embedding x0 c0 c1"]


FLOATS = {
    "sum": (lambda m, x, y: x + y, ["v0 = add x0 x1"]),
    "twice": (lambda m, x, y: x + x, ["v0 = add x0 x0"]),
    "product": (lambda m, x, y: x * y, ["v0 = multiply x0 x1"]),
    "layer norm": (lambda m, x, y: m.norm(x), ["v0 = norm x0 c0 c1 layer 1e-05"]),
    "bare layer norm": (lambda m, x, y: functional.layer_norm(x, (8,), eps=0.5), ["v0 = norm x0 - - layer 0.5"]),
    "rms norm": (lambda m, x, y: functional.rms_norm(x, (8,), m.norm.weight, 1e-6), ["v0 = norm x0 c0 - rms 1e-06"]),
    "rms norm of the type's eps": (
        lambda m, x, y: functional.rms_norm(x, (8,)),
        ["v0 = norm x0 - - rms 1.1920928955078125e-07"],
    ),
    "constant row": (lambda m, x, y: x + m.first.bias, ["v0 = add x0 x1"]),
    "constant row for constant rows": (lambda m, x, y: m.first.bias * m.rows, []),
    "constant of all rows": (lambda m, x, y: x * m.rows, []),
    "number": (lambda m, x, y: x + 1.5, []),
    "factor of the second": (lambda m, x, y: torch.add(x, y, alpha=2), []),
    "float64": (lambda m, x, y: x.double() + y.double(), []),
    "half precision": (lambda m, x, y: x.bfloat16() * y.bfloat16(), []),
    "integers": (lambda m, x, y: x.long() + y.long(), []),
    "mixed types": (lambda m, x, y: x + y.double(), []),
    "one column for all": (lambda m, x, y: x + y[:, :1], ["v0 = columns x0 0 1"]),
    "norm over two axes": (lambda m, x, y: functional.layer_norm(x, (3, 8)), []),
    "norm in float64": (lambda m, x, y: functional.layer_norm(x.double(), (8,)), []),
    "norm with computed weights": (lambda m, x, y: functional.layer_norm(x, (8,), y[0], y[1]), []),
    "columns": (lambda m, x, y: x[:, 2:5], ["v0 = columns x0 2 5"]),
    "columns from the end": (lambda m, x, y: x[:, -3:], []),
    "every other column": (lambda m, x, y: x[:, ::2], []),
    "rows": (lambda m, x, y: x[1:], []),
    "activation of no linear": (lambda m, x, y: functional.silu(x[:, :4]), ["v0 = columns x0 0 4"]),
    "difference": (lambda m, x, y: x - y, []),
    "float look-up": (lambda m, x, y: m.table(x.long()), []),
}


@pytest.mark.parametrize("case", FLOATS)
def test_float_steps_and_near_misses(case):
    function, expected = FLOATS[case]
    assert lines(canonical_graph(Layers(function), x(), x(seed=1))) == expected


def test_the_operand_with_fewer_rows_comes_second():
    gm = canonical_graph(Call(lambda x, y: (y + x, x + y, y * x)), x(4, 5, 8), x(5, 8))
    assert lines(gm) == ["v0 = add x0 x1", "v0 = add x0 x1", "v0 = multiply x0 x1"]
    firsts = [write_program([node], [])[0][0].name for node in gm.graph.nodes if read_step(node)]
    assert firsts == ["inputs_0"] * 3


SERVES = {
    ((3, 4), (3, 4)): True,
    ((1, 4), (3, 4)): True,
    ((4,), (3, 4)): True,
    ((1,), (3, 4)): True,
    ((), (3, 4)): True,
    ((1, 1, 4), (2, 3, 4)): True,
    ((3, 4), (2, 3, 4)): True,
    ((3, 1), (3, 4)): False,
    ((3,), (3, 4)): False,
    ((2, 1, 4), (2, 3, 4)): False,
    ((2, 3, 4), (3, 4)): False,
    ((1, 3, 4), (3, 4)): False,
    (None, (3, 4)): False,
    ((3, 4), None): False,
}


@pytest.mark.parametrize(("few", "rows"), SERVES, ids=str)
def test_rows_that_serve_all(few, rows):
    assert serves(few, rows) is SERVES[few, rows]
    if few and rows and SERVES[few, rows]:  # repeating as a whole is what broadcasting does
        values = torch.arange(torch.Size(few).numel()).view(few)
        repeated = values.flatten().repeat(torch.Size(rows).numel() // values.numel())
        assert torch.equal(values.expand(rows).flatten(), repeated)


def test_rows_lie_along_all_axes_of_indices():
    graph = torch.fx.Graph()
    node = graph.placeholder("x")
    for dtype, expected in ((torch.float32, (2,)), (torch.uint8, (2,)), (torch.int64, (2, 3)), (torch.int32, (2, 3))):
        edit.mark(node, value=TensorInfo(dtype, (2, 3), (False, False)).to_dict())
        assert leading(node) == expected
    edit.mark(node, value=None)
    assert leading(node) is None


def test_a_program_names_each_operand_once():
    gm = canonical_graph(Layers(lambda m, x, y: m.norm(m.norm(x + y) * x)), x(), x(seed=1))
    nodes = [node for node in gm.graph.nodes if read_step(node)]
    inputs, constants, text = write_program(nodes, [nodes[3], nodes[0]])
    assert [node.name for node in inputs] == ["inputs_0", "inputs_1"]
    assert [node.target for node in constants] == ["norm.weight", "norm.bias"]
    assert text.splitlines() == [
        "v0 = add x0 x1",
        "v1 = norm v0 c0 c1 layer 1e-05",
        "v2 = multiply v1 x0",
        "v3 = norm v2 c0 c1 layer 1e-05",
        "return v3 v0",
    ]


def test_linear_with_a_constant_residual_is_no_step():
    gm = lowered_graph(nn.Linear(8, 8), torch.ones(2, 8))
    (node,) = [each for each in gm.graph.nodes if "linear" in str(each.target)]
    assert read_step(node) is not None
    edit.set_argument(node, 5, node.args[4])
    assert read_step(node) is None
