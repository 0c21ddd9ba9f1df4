"""The reference convolution against a sum over patches that is written out, in integers."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fxquant.kernels
from fxquant.kernels.reference import conv

assert fxquant.kernels  # defines the ops
ops = torch.ops.fxquant
FLOAT = (None, None, 0, 0, torch.float32)


@st.composite
def convolutions(draw):
    """Draw operands (x, zero point, weight) and options of a convolution whose kernel fits."""
    axes, groups = draw(st.integers(1, 2)), draw(st.sampled_from([1, 2, 3]))
    kernel, stride, padding, dilation = (
        [draw(st.integers(low, high)) for _ in range(axes)] for low, high in ((1, 3), (1, 3), (0, 2), (1, 2))
    )
    least = [gap * (side - 1) + 1 - 2 * pad for side, gap, pad in zip(kernel, dilation, padding, strict=True)]
    sizes = [max(low, 1) + draw(st.integers(0, 4)) for low in least]
    batch, inner, columns = draw(st.integers(0, 3)), groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    dtype = draw(st.sampled_from([torch.uint8, torch.int8]))
    low = torch.iinfo(dtype).min
    x = torch.randint(low, low + 256, (batch, inner, *sizes), dtype=dtype, generator=generator)
    shape = (batch, 1, *[1] * axes) if draw(st.booleans()) else ()
    zero_point = torch.randint(low, low + 256, shape, dtype=torch.int32, generator=generator)
    weight = torch.randint(-128, 128, (columns, inner // groups, *kernel), dtype=torch.int8, generator=generator)
    return (x, zero_point, weight), (stride, padding, dilation, groups)


def written_out(x, zero_point, weight, stride, padding, dilation, groups):
    """Return the sums of a convolution, one product after the other."""
    places = x.long() - zero_point
    per_group, columns = x.shape[1] // groups, weight.shape[0] // groups
    shape = conv.output_shape(x, len(weight), weight.shape[2:], stride, padding, dilation)
    sums = torch.zeros(shape, dtype=torch.long)
    for n, place in itertools.product(range(len(weight)), itertools.product(*map(range, shape[2:]))):
        first = n // columns * per_group
        for tap in itertools.product(*map(range, weight.shape[2:])):
            at = [p * s - q + t * d for p, s, q, t, d in zip(place, stride, padding, tap, dilation, strict=True)]
            if all(0 <= i < size for i, size in zip(at, x.shape[2:], strict=True)):
                window = places[(slice(None), slice(first, first + per_group), *at)]
                sums[(slice(None), n, *place)] += (window * weight[(n, slice(None), *tap)].long()).sum(1)
    return sums


@settings(deadline=None, max_examples=40)
@given(convolutions())
def test_accumulators_are_the_sums_over_patches(case):
    operands, options = case
    assert torch.equal(conv.accumulate(*operands, *options).long(), written_out(*operands, *options))


def layer():
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (2, 3, 6, 5), dtype=torch.uint8, generator=generator)
    weight = torch.randint(-127, 128, (4, 3, 3, 3), dtype=torch.int8, generator=generator)
    scales = (
        torch.rand(2, 1, 1, 1, generator=generator) / 20,
        torch.tensor([100, 7], dtype=torch.int32)[:, None, None, None],
    )
    return x, *scales, weight, torch.rand(4, generator=generator) / 50, torch.randn(4, generator=generator)


def expected(x, x_scale, x_zero_point, weight, weight_scale, bias, **options):
    wide = (x.double() - x_zero_point) * x_scale
    scaled = weight.double() * weight_scale[:, None, None, None]
    return torch.nn.functional.conv2d(wide, scaled, bias.double(), **options)


@pytest.mark.parametrize("activation", ["none", "relu", "gelu", "silu"])
def test_equals_the_dequantized_convolution(activation):
    operands = layer()
    residual = torch.randn(2, 4, 3, 3)
    y = ops.conv_int8(*operands, residual, activation, [2, 2], [1, 1], [1, 1], 1, *FLOAT)
    functions = {"none": lambda v: v, "relu": torch.relu, "gelu": torch.nn.functional.gelu}
    function = functions.get(activation, torch.nn.functional.silu)
    torch.testing.assert_close(
        y.double(), function(expected(*operands, stride=2, padding=1)) + residual, atol=1e-4, rtol=1e-5
    )


def test_add_relu_comes_behind_the_residual():
    operands = layer()
    residual = torch.randn(2, 4, 4, 3) * 9
    y = ops.conv_int8(*operands, residual, "add_relu", [1, 1], [0, 0], [1, 1], 1, *FLOAT)
    torch.testing.assert_close(y.double(), torch.relu(expected(*operands) + residual), atol=1e-4, rtol=1e-5)


def test_an_integer_bias_is_added_to_the_sums():
    x, _, zero_point, weight, weight_scale, _ = layer()
    x_scale, bias = torch.tensor(0.03), torch.tensor([5, -900, 70000, 0], dtype=torch.int32)
    tail = (None, "none", [1, 1], [0, 0], [1, 1], 1, *FLOAT)
    y = ops.conv_int8(x, x_scale, zero_point, weight, weight_scale, bias, *tail)
    in_float = (bias * (x_scale * weight_scale)).float()
    torch.testing.assert_close(y, ops.conv_int8(x, x_scale, zero_point, weight, weight_scale, in_float, *tail))


def test_fake_tensors_have_the_shape_and_dtype():
    operands = layer()
    scale, zero_point = torch.tensor(0.1), torch.tensor(3, dtype=torch.int32)
    for out in (FLOAT, (scale, zero_point, 0, 255, torch.uint8)):
        torch.library.opcheck(
            ops.conv_int8.default,
            (*operands, None, "relu", [2, 1], [1, 0], [1, 2], 1, *out),
            test_utils="test_faketensor",
        )
