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


class Conv(nn.Module):
    """A convolution whose result has the shape of its input, and what comes after it."""

    def __init__(self, axes=2, after=lambda y, x: y, **options):
        super().__init__()
        self.conv = (nn.Conv1d, nn.Conv2d)[axes - 1](4, 4, 3, padding=1, **options)
        self.after = after

    def forward(self, x):
        return self.after(self.conv(x), x)


IMAGE, SOUND = torch.randn(2, 4, 6, 5), torch.randn(2, 4, 7)
CONVOLUTIONS = {
    "conv1d_relu": Conv(1, lambda y, x: y.relu()),
    "conv1d_gelu": Conv(1, lambda y, x: functional.gelu(y)),
    "conv2d_relu": Conv(2, lambda y, x: y.relu(), bias=False),
    "conv2d_gelu": Conv(2, lambda y, x: functional.gelu(y, approximate="tanh"), groups=2),
    "conv2d_silu": Conv(2, lambda y, x: functional.silu(y), dilation=1),
    "conv2d_add": Conv(2, lambda y, x: x + y),
    "conv2d_add_relu": Conv(2, lambda y, x: (y + x).relu()),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_fused_convolutions_match_with_their_roles(name):
    model = CONVOLUTIONS[name]
    found = OPS[name].match(last_call(canonical_graph(model, SOUND if "1d" in name else IMAGE)))
    assert isinstance(found, Match)
    assert found.values["x"].op == "placeholder"
    assert found.values["weight"].target == "conv.weight"
    assert (found.values["bias"] is None) == (model.conv.bias is None)
    assert found.attrs["groups"] == model.conv.groups
    assert ("add" in name) == ("residual" in found.values)


class ComputedKernel(nn.Module):
    def forward(self, x, weight):
        return functional.conv2d(x, weight * 2)


CONV_NEAR_MISSES = {
    "kernel of a computed weight": (
        "conv2d",
        ComputedKernel(),
        (IMAGE, torch.randn(4, 4, 3, 3)),
        "computed at run time",
    ),
    "no axis of the batch": ("conv2d", Conv(), (IMAGE[0],), "without an axis of the batch"),
    "one axis": ("conv1d", Conv(), (IMAGE,), "expected aten.conv1d"),
    "relu behind another op": ("conv2d_relu", Conv(2, lambda y, x: y.neg().relu()), (IMAGE,), "found %neg"),
    "relu of two axes": ("conv1d_relu", Conv(2, lambda y, x: y.relu()), (IMAGE,), "expected aten.conv1d"),
    "gelu behind another op": ("conv2d_gelu", Conv(2, lambda y, x: functional.gelu(y.neg())), (IMAGE,), "found %neg"),
    "gelu of two axes": ("conv1d_gelu", Conv(2, lambda y, x: functional.gelu(y)), (IMAGE,), "expected aten.conv1d"),
    "silu of one axis": ("conv2d_silu", Conv(1, lambda y, x: functional.silu(y)), (SOUND,), "expected aten.conv2d"),
    "residual that broadcasts": ("conv2d_add", Conv(2, lambda y, x: y + x[None]), (IMAGE,), "broadcasts"),
    "subtraction": ("conv2d_add", Conv(2, lambda y, x: y - x), (IMAGE,), "expected aten.add.Tensor"),
    "residual that broadcasts, relu": (
        "conv2d_add_relu",
        Conv(2, lambda y, x: (y + x[None]).relu()),
        (IMAGE,),
        "broadcasts",
    ),
}


@pytest.mark.parametrize("case", CONV_NEAR_MISSES)
def test_near_miss_of_a_convolution_says_why(case):
    name, model, inputs, reason = CONV_NEAR_MISSES[case]
    found = OPS[name].match(last_call(canonical_graph(model, *inputs)))
    assert isinstance(found, Mismatch)
    assert reason in found.reason


def test_every_op_is_covered_here():
    assert set(OPS) == set(MATCHES) | set(PRODUCTS) | set(CONVOLUTIONS) | {"embedding", "grouped_linear"}
