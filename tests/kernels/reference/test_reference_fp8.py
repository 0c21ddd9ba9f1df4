"""Float8 activations times float8 weights, against a layer of what they stand for."""

import pytest
import torch
from torch.nn import functional

from fxquant.errors import ConfigError

ops = torch.ops.fxquant
FLOAT8 = torch.float8_e4m3fn


def case(by_row, by_column):
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(shape, generator=generator).mul(50).to(FLOAT8) for shape in ((2, 3, 20), (7, 20)))
    x_scale = torch.rand((2, 3, 1) if by_row else (), generator=generator)
    return x, x_scale, weight, torch.rand((7,) if by_column else (), generator=generator)


@pytest.mark.parametrize("by_row", [False, True], ids=["tensor", "token"])
@pytest.mark.parametrize("by_column", [False, True], ids=["tensor", "channel"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_equals_the_dequantized_layer(by_row, by_column, dtype):
    x, x_scale, weight, weight_scale = case(by_row, by_column)
    bias, residual = torch.randn(7), torch.randn(3, 1)
    wide = weight.double() * (weight_scale[:, None] if by_column else weight_scale)
    expected = torch.relu(functional.linear(x.double() * x_scale, wide, bias.double())) + residual
    y = ops.linear_fp8(x, x_scale, weight, weight_scale, bias, residual, "relu", dtype)
    torch.testing.assert_close(y, expected.to(dtype), rtol=1e-5 if dtype is torch.float32 else 2**-7, atol=1e-2)


def test_an_unknown_activation_names_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown activation 'gelu_tan'.*did you mean 'gelu_tanh'"):
        ops.linear_fp8(*case(True, True), None, None, "gelu_tan", torch.float32)


def test_opcheck():
    arguments = (*case(True, True), torch.randn(7), torch.randn(7), "gelu", torch.float32)
    torch.library.opcheck(ops.linear_fp8.default, arguments, test_utils="test_faketensor")
