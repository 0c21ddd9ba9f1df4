"""Every registered op: matches, is equal to the eager module, and misses its near-misses with a reason."""

import pytest
import torch
from graphs import Call, canonical_graph, last_call
from torch import nn
from torch.nn import functional

from fxquant.graph.pattern import Match, Mismatch
from fxquant.ops import OPS

aten = torch.ops.aten


class Linear(nn.Module):
    def __init__(self, after=lambda y, x: y, bias=True):
        super().__init__()
        self.dense = nn.Linear(8, 8, bias=bias)
        self.after = after

    def forward(self, x):
        return self.after(self.dense(x), x)


class Computed(nn.Module):
    def forward(self, x, weight):
        return functional.linear(x, weight * 2)


X = torch.randn(3, 8)
MATCHES = {
    "linear": (Linear(), {}),
    "linear_relu": (Linear(lambda y, x: y.relu()), {}),
    "linear_gelu": (Linear(lambda y, x: functional.gelu(y, approximate="tanh"), bias=False), {"approximate": "tanh"}),
    "linear_silu": (Linear(lambda y, x: functional.silu(y)), {}),
    "linear_add": (Linear(lambda y, x: x + y), {}),
}


@pytest.mark.parametrize("name", MATCHES)
def test_matches_with_its_roles(name):
    model, attrs = MATCHES[name]
    gm = canonical_graph(model, X)
    found = OPS[name].match(last_call(gm))
    assert isinstance(found, Match)
    assert found.attrs == attrs
    assert found.values["x"].op == "placeholder"
    assert found.values["weight"].target == "dense.weight"
    assert (found.values["bias"] is None) == (model.dense.bias is None)


NEAR_MISSES = {
    "linear of a computed weight": ("linear", Computed(), (X, torch.randn(4, 8)), "computed at run time"),
    "relu behind another op": ("linear_relu", Linear(lambda y, x: y.neg().relu()), (X,), "found %neg"),
    "residual that broadcasts": (
        "linear_add",
        Linear(lambda y, x: y + x[None, :2, :].reshape(2, 1, 8)),
        (X,),
        "broadcasts",
    ),
    "subtraction": ("linear_add", Linear(lambda y, x: y - x), (X,), "expected aten.add.Tensor"),
}


@pytest.mark.parametrize("case", NEAR_MISSES)
def test_near_miss_says_why(case):
    name, model, inputs, reason = NEAR_MISSES[case]
    found = OPS[name].match(last_call(canonical_graph(model, *inputs)))
    assert isinstance(found, Mismatch)
    assert reason in found.reason


def test_value_used_twice_is_a_near_miss():
    gm = canonical_graph(Linear(lambda y, x: (y, functional.gelu(y))), X)
    found = OPS["linear_gelu"].match(last_call(gm))
    assert isinstance(found, Mismatch)
    assert "also used by %output" in found.reason


def test_embedding_binds_table_and_indices():
    gm = canonical_graph(nn.Embedding(10, 4, padding_idx=0), torch.tensor([[1, 2]]))
    found = OPS["embedding"].match(last_call(gm))
    assert isinstance(found, Match)
    assert found.values["weight"].target == "weight"
    assert found.attrs["padding_idx"] == 0


class Attend(nn.Module):
    def forward(self, q, k, v):
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True)


PRODUCTS = {
    "matmul": (torch.matmul, (torch.randn(2, 3, 4), torch.randn(2, 4, 5))),
    "attention": (Attend(), tuple(torch.randn(3, 2, 2, 5, 4))),
    "conv1d": (nn.Conv1d(4, 6, 3), (torch.randn(2, 4, 9),)),
    "conv2d": (nn.Conv2d(4, 6, 3, groups=2), (torch.randn(2, 4, 9, 9),)),
    "conv3d": (nn.Conv3d(4, 6, 3), (torch.randn(2, 4, 5, 5, 5),)),
    "conv_transpose1d": (nn.ConvTranspose1d(4, 6, 3), (torch.randn(2, 4, 9),)),
    "conv_transpose2d": (nn.ConvTranspose2d(4, 6, 3, groups=2), (torch.randn(2, 4, 9, 9),)),
    "conv_transpose3d": (nn.ConvTranspose3d(4, 6, 3), (torch.randn(2, 4, 5, 5, 5),)),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_match(name):
    function, inputs = PRODUCTS[name]
    model = function if isinstance(function, nn.Module) else Call(function)
    found = OPS[name].match(last_call(canonical_graph(model, *inputs)))
    assert isinstance(found, Match)


def test_every_op_is_covered_here():
    assert set(OPS) == set(MATCHES) | set(PRODUCTS) | {"embedding", "grouped_linear"}
