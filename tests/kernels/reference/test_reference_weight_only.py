"""Float activations times weights of 8 and 4 bits, against a layer of dequantized weights."""

import pytest
import torch
from torch.nn import functional

from fxquant.errors import ConfigError
from fxquant.kernels.int4 import pack_int4

ops = torch.ops.fxquant


def case(dtype, depth, group):
    """Return x, the integers, their stored form, and scale and zero point of the tensor, its rows, or their groups."""
    generator = torch.Generator().manual_seed(depth)
    low, form = {"int4": (-8, torch.int8), "uint4": (0, torch.uint8), "int8": (-128, torch.int8)}[dtype]
    count = 16 if dtype.endswith("4") else 256
    integers = torch.randint(low, low + count, (6, depth), generator=generator).to(form)
    shape = {None: (), 0: (6,)}.get(group, (6, -(-depth // (group or 1))))
    scale = torch.rand(shape, generator=generator)
    zero_point = torch.randint(low, low + count, shape, generator=generator).to(form)
    stored = pack_int4(integers) if count == 16 else integers
    return torch.randn(2, 3, depth, generator=generator), integers, stored, scale, zero_point


@pytest.mark.parametrize("dtype", ["int4", "uint4", "int8"])
@pytest.mark.parametrize("group", [None, 0, 1, 4, 100], ids=["tensor", "channel", "ones", "fours", "one-group"])
@pytest.mark.parametrize("depth", [1, 7, 12])
def test_equals_the_dequantized_layer(dtype, group, depth):
    x, integers, stored, scale, zero_point = case(dtype, depth, group)
    columns = torch.arange(depth) // group if group else 0
    wide_scale, wide_zero = scale, zero_point.double()
    if group is not None:
        wide_scale, wide_zero = (each.reshape(6, -1)[:, columns].reshape(6, -1) for each in (scale, wide_zero))
    weight = (integers.double() - wide_zero) * wide_scale
    bias, residual = torch.randn(6), torch.randn(6)
    y = ops.linear_weight_only(x, stored, scale, zero_point, bias, residual, "relu", dtype, group or None)
    expected = torch.relu(functional.linear(x.double(), weight, bias.double())) + residual
    assert y.dtype is torch.float32
    torch.testing.assert_close(y, expected.float(), rtol=1e-5, atol=1e-5 * float(weight.abs().max()))


def test_half_precision_gives_float32():
    x, _, stored, scale, zero_point = case("int4", 12, 4)
    y = ops.linear_weight_only(x.bfloat16(), stored, scale, zero_point, None, None, "none", "int4", 4)
    expected = ops.linear_weight_only(x.bfloat16().float(), stored, scale, zero_point, None, None, "none", "int4", 4)
    assert torch.equal(y, expected)


def test_an_unknown_activation_names_the_nearest():
    x, _, stored, scale, zero_point = case("int4", 12, 4)
    with pytest.raises(ConfigError, match=r"unknown activation 'gelu_tan'.*did you mean 'gelu_tanh'"):
        ops.linear_weight_only(x, stored, scale, zero_point, None, None, "gelu_tan", "int4", 4)


@pytest.mark.parametrize("group", [None, 4])
def test_opcheck(group):
    x, _, stored, scale, zero_point = case("int4", 12, group)
    arguments = (x, stored, scale, zero_point, torch.randn(6), torch.randn(6), "gelu", "int4", group)
    torch.library.opcheck(ops.linear_weight_only.default, arguments)
