"""Multiply-accumulates at the example shape, counted by hand."""

import pytest
import torch
from graphs import Call, last_call
from torch import nn
from torch.nn import functional

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
    "no matrix arithmetic": (nn.ReLU(), [(3, 4)], None, 0),
}


@pytest.mark.parametrize("case", CASES)
def test_counts(case):
    model, shapes, kind, expected = CASES[case]
    node = last_call(capture(model.eval(), tuple(torch.randn(shape) for shape in shapes), dynamic=False))
    assert (family(node), macs(node)) == (kind, expected)
