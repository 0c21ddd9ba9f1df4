import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from linears import ACTIVATIONS, FLOAT_OUTPUT, int32
from torch.nn import functional

from fxquant.errors import ConfigError
from fxquant.kernels.integer import integer_matmul
from fxquant.kernels.reference.linear import accumulate

ops = torch.ops.fxquant


def case(shape, width, seed, dtype=torch.uint8):
    generator = torch.Generator().manual_seed(seed)
    limits = torch.iinfo(dtype)
    x = torch.randint(limits.min, limits.max + 1, shape, dtype=dtype, generator=generator)
    weight = torch.randint(-127, 128, (width, shape[-1]), dtype=torch.int8, generator=generator)
    return x, weight, torch.rand(width, generator=generator) / 100, torch.randn(width, generator=generator)


def in_float64(x, x_scale, x_zero_point, weight, weight_scale):
    """The layer on dequantized tensors, without rounding to speak of."""
    return (x_scale.double() * (x.double() - x_zero_point)) @ (weight_scale.double()[:, None] * weight.double()).t()


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(["int8", "uint8"]), st.integers(0, 5), st.integers(0, 700), st.integers(0, 6), st.integers(0, 99)
)
def test_accumulators_equal_int64_arithmetic(dtype, rows, depth, width, seed):
    x, weight, *_ = case((rows, depth), width, seed, getattr(torch, dtype))
    expected = (x.numpy().astype(np.int64) - 7) @ weight.numpy().astype(np.int64).T
    np.testing.assert_array_equal(accumulate(x, int32(7), weight).numpy(), expected)


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("per_token", [False, True], ids=["per-tensor", "per-token"])
def test_equals_the_float_layer_on_dequantized_tensors(activation, per_token):
    x, weight, weight_scale, bias = case((2, 5, 65), 9, 0)
    x_scale = torch.rand(2, 5, 1) / 50 if per_token else torch.tensor(0.02)
    x_zero_point = torch.randint(0, 256, (2, 5, 1), dtype=torch.int32) if per_token else int32(131)
    residual = torch.randn(5, 1)
    y = ops.linear_int8(x, x_scale, x_zero_point, weight, weight_scale, bias, residual, activation, *FLOAT_OUTPUT)
    expected = ACTIVATIONS[activation](in_float64(x, x_scale, x_zero_point, weight, weight_scale) + bias) + residual
    torch.testing.assert_close(y, expected.float(), rtol=1e-6, atol=1e-6)


def test_an_int32_bias_is_added_to_the_accumulator():
    x, weight, *_ = case((3, 40), 4, 1)
    one, bias = torch.tensor(1.0), torch.tensor([1, -2, 30, -400], dtype=torch.int32)
    y = ops.linear_int8(x, one, int32(5), weight, one, bias, None, "none", *FLOAT_OUTPUT)
    expected = (x.long() - 5) @ weight.long().t() + bias
    assert torch.equal(y.long(), expected)


@pytest.mark.parametrize(
    ("dtype", "low", "high", "zero_point"),
    [(torch.int8, -127, 127, 0), (torch.int8, -128, 127, -5), (torch.uint8, 0, 255, 130)],
    ids=["int8-restricted", "int8-affine", "uint8"],
)
def test_the_output_is_quantized_when_a_scale_is_given(dtype, low, high, zero_point):
    x, weight, weight_scale, bias = case((4, 33), 7, 2)
    x_scale = torch.tensor(0.02)
    out_scale = torch.tensor(0.1)
    output = (out_scale, int32(zero_point), low, high, dtype)
    y = ops.linear_int8(x, x_scale, int32(128), weight, weight_scale, bias, None, "gelu", *output)
    expected = functional.gelu(in_float64(x, x_scale, 128, weight, weight_scale) + bias) / out_scale.double()
    assert y.dtype is dtype
    difference = y.double() - (expected.round() + zero_point).clamp(low, high)
    assert difference.abs().max() <= 1
    assert (difference != 0).double().mean() < 0.1


def test_an_unknown_activation_names_the_nearest():
    x, weight, weight_scale, _ = case((1, 4), 2, 3)
    with pytest.raises(ConfigError, match=r"unknown activation 'gelu_tan'.*did you mean 'gelu_tanh'"):
        ops.linear_int8(x, torch.tensor(1.0), int32(0), weight, weight_scale, None, None, "gelu_tan", *FLOAT_OUTPUT)


def test_weight_only_equals_the_dequantized_layer():
    _, weight, weight_scale, bias = case((1, 50), 8, 4)
    x = torch.randn(2, 3, 50)
    y = ops.linear_weight_int8(x, weight, weight_scale, bias, x[..., :8], "relu")
    expected = torch.relu(functional.linear(x, weight.float() * weight_scale[:, None], bias)) + x[..., :8]
    torch.testing.assert_close(y, expected)
    assert ops.linear_weight_int8(x.bfloat16(), weight, weight_scale, bias, None, "none").dtype is torch.bfloat16


@pytest.mark.parametrize("per_row", [True, False], ids=["per-row", "per-tensor"])
def test_embedding_reads_dequantized_rows(per_row):
    table = torch.randint(-127, 128, (11, 6), dtype=torch.int8)
    scale = torch.rand(11) if per_row else torch.tensor(0.3)
    indices = torch.tensor([[0, 10, 3], [3, 3, 1]])
    expected = (table.float() * (scale[:, None] if per_row else scale))[indices]
    assert torch.equal(ops.embedding_int8(table, scale, indices), expected)


@pytest.mark.parametrize("per_token", [False, True], ids=["per-tensor", "per-token"])
def test_matmul_equals_float64_arithmetic(per_token):
    a = torch.randint(0, 256, (2, 3, 5, 300), dtype=torch.uint8)
    b = torch.randint(-128, 128, (3, 300, 4), dtype=torch.int8)
    a_scale = torch.rand(2, 3, 5, 1) if per_token else torch.tensor(0.5)
    a_zero_point = torch.randint(0, 256, (2, 3, 5, 1), dtype=torch.int32) if per_token else int32(200)
    y = ops.matmul_int8(a, a_scale, a_zero_point, b, torch.tensor(0.25), int32(-9), *FLOAT_OUTPUT)
    sums = (a.long() - a_zero_point) @ (b.long() + 9)
    torch.testing.assert_close(y, (sums.double() * a_scale * 0.25).float(), rtol=1e-6, atol=0)
    assert torch.equal(integer_matmul(a, b).long(), a.long() @ b.long())


def test_opcheck():
    x, weight, weight_scale, bias = case((2, 3, 16), 5, 5)
    x_scale, floats = torch.rand(2, 3, 1), torch.randn(2, 3, 16)
    common = (weight, weight_scale, bias, torch.randn(5), "gelu")
    check = torch.library.opcheck
    check(ops.linear_int8.default, (x, x_scale, int32(3), *common, *FLOAT_OUTPUT))
    check(ops.linear_int8.default, (x, x_scale, int32(3), *common, torch.tensor(0.1), int32(0), -127, 127, torch.int8))
    check(ops.linear_weight_int8.default, (floats, *common))
    check(ops.embedding_int8.default, (weight, weight_scale, torch.tensor([[1, 0]])))
    check(
        ops.matmul_int8.default, (x, x_scale, int32(3), x.transpose(1, 2), torch.tensor(1.0), int32(0), *FLOAT_OUTPUT)
    )
