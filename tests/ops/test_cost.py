"""Multiply-accumulates at the example shape, counted by hand."""

import pytest
import torch
from graphs import Call, last_call
from torch import nn
from torch.nn import functional

import fxquant as fxq
from fxquant.graph.capture import capture
from fxquant.ops.cost import family, macs

CASES = {
    "linear": (nn.Linear(8, 5), [(2, 3, 8)], "linear", 2 * 3 * 5 * 8),
    "matmul": (Call(torch.matmul), [(2, 3, 4), (2, 4, 5)], "attention", 2 * 3 * 5 * 4),
    "bmm": (Call(torch.bmm), [(2, 3, 4), (2, 4, 5)], "attention", 2 * 3 * 5 * 4),
    "addmm": (Call(torch.addmm), [(5,), (3, 4), (4, 5)], "linear", 3 * 5 * 4),
    "attention": (
        Call(functional.scaled_dot_product_attention),
        [(2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 6)],
        "attention",
        2 * 3 * 5 * 7 * (8 + 6),
    ),
    "conv2d with groups": (nn.Conv2d(4, 6, 3, groups=2), [(2, 4, 9, 9)], "convolution", 2 * 6 * 7 * 7 * 2 * 9),
    "transposed conv": (nn.ConvTranspose1d(4, 6, 3), [(2, 4, 9)], "convolution", 2 * 4 * 9 * 6 * 3),
    "einsum": (
        Call(lambda a, b: torch.einsum("bij,bjk->bik", a, b)),
        [(2, 3, 4), (2, 4, 5)],
        "attention",
        2 * 3 * 4 * 5,
    ),
    "einsum with an ellipsis": (
        Call(lambda a, b: torch.einsum("...ij,jk->...ik", a, b)),
        [(2, 3, 4), (4, 5)],
        "attention",
        2 * 3 * 4 * 5,
    ),
    "tensordot": (Call(lambda a, b: torch.tensordot(a, b, 1)), [(2, 3, 4), (4, 5)], "attention", 2 * 3 * 4 * 5),
    "matrix by vector": (Call(torch.mv), [(3, 4), (4,)], "linear", 12),
    "bilinear": (nn.Bilinear(3, 4, 5), [(2, 3), (2, 4)], "linear", 2 * 5 * 3 * 4),
    "no matrix arithmetic": (nn.ReLU(), [(3, 4)], None, 0),
}


@pytest.mark.parametrize("case", CASES)
def test_counts(case):
    model, shapes, kind, expected = CASES[case]
    node = last_call(capture(model.eval(), tuple(torch.randn(shape) for shape in shapes), dynamic=False))
    assert (family(node), macs(node)) == (kind, expected)


def test_a_recurrent_layer_is_not_silent():
    """Its outputs are several, and still it has a cost, a row, and under strict an error."""
    graph = capture(nn.LSTM(4, 6, batch_first=True).eval(), (torch.randn(2, 3, 4),), dynamic=False)
    (node,) = [node for node in graph.graph.nodes if family(node)]
    assert macs(node) == 2 * 3 * (4 * 6 * 4 + 4 * 6 * 6)
    (row,) = [row for row in fxq.ledger(fxq.prepare(graph, "x86", "dynamic")).rows if row.family]
    assert (row.code, row.op) == ("no-match", "aten.lstm.input")
    with pytest.raises(fxq.CoverageError, match=r"aten\.lstm.*with dynamic=True its products are linears"):
        fxq.quantize(graph, (torch.randn(2, 3, 4),), strict=True)
