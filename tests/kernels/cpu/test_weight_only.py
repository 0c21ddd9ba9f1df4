"""Packed weights of 8 and 4 bits under float activations, on each instruction set of the C++ kernels and without."""

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from linears import ACTIVATIONS, WEIGHT_KINDS, in_float64, quantized_weight, weight_spec
from torch.nn import functional

import fxquant.kernels
from fxquant.kernels.cpu import native, weight_only
from fxquant.numerics import dequantize
from fxquant.spec import QParams, QuantSpec

assert fxquant.kernels  # defines the ops
op = torch.ops.fxquant.packed_linear_weight_only
examples = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
batches = st.sampled_from([(), (0,), (1,), (2,), (5,), (6,), (7,), (3, 4), (50,)])
depths = st.sampled_from([0, 1, 2, 3, 4, 7, 8, 9, 31, 33, 64, 70, 172])
columns = st.sampled_from([0, 1, 3, 63, 64, 65, 130])
groups = st.sampled_from([None, "tensor", 1, 3, 8, 32, 64, 100, 128])


def layer(n, k, spec, seed=0):
    """Return the arguments of a packed weight, and the weight itself dequantized."""
    integers, qparams = quantized_weight(n, k, spec, seed)
    scale, zero_point = (weight_only.pack_parameter(each, (n, k), spec) for each in (qparams.scale, qparams.zero_point))
    packed = (weight_only.pack(integers, spec), scale, None if spec.symmetric else zero_point)
    return packed, (n, weight_only.group_size(spec, k)), dequantize(integers, qparams)


def run(x, packed, shape, bias=None, residual=None, activation="none"):
    return op(x, *packed, bias, residual, activation, *shape)


def taken(x, isa):
    """Return what an instruction set multiplies: avx512_bf16 rounds rows in its range, and drops subnormal numbers."""
    if isa != "avx512_bf16":
        return x
    rounded = x.bfloat16().float()
    rounded = torch.where(rounded.abs() < 2.0**-126, 0.0, rounded)
    return torch.where(x.abs().sum(-1, keepdim=True) < 2.0**118, rounded, x)


def assert_near(y, expected, x, weight):
    """Each of the K sums and products may round: 2⁻²⁴·K of the sum of magnitudes, and 1e-6 for GELU."""
    assert y.shape == expected.shape
    assert y.dtype is torch.float32
    bound = x.double().abs() @ weight.double().abs().t() + 1
    assert ((y.double() - expected).abs() <= bound * 2.0**-23 * (x.shape[-1] + 8) + 2e-6).all()


@pytest.mark.parametrize("kind", WEIGHT_KINDS, ids=lambda kind: f"{kind[0]}-{'symmetric' if kind[1] else 'affine'}")
@examples
@given(batches, columns, depths, groups, st.sampled_from(list(ACTIVATIONS)), st.booleans(), st.integers(0, 99))
def test_equals_the_dequantized_layer(native_isa, kind, batch, n, k, group, activation, full, seed):
    packed, shape, weight = layer(n, k, weight_spec(*kind, group), seed)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*batch, k, generator=generator) * 3 + 1
    bias = torch.randn(n, generator=generator) if full else None
    residual = torch.randn(*batch, n, generator=generator) if full else None
    y = run(x, packed, shape, bias, residual, activation)
    x = taken(x, native_isa)
    assert_near(y, in_float64(x, weight, bias, residual, activation), x, weight)


@examples
@given(columns, depths, groups, st.sampled_from(WEIGHT_KINDS), st.integers(0, 99))
def test_what_it_means_without_a_compiler(n, k, group, kind, seed):
    packed, shape, weight = layer(n, k, weight_spec(*kind, group), seed)
    x, bias, residual = torch.randn(2, 3, k), torch.randn(n), torch.randn(n)
    y = weight_only.packed_linear_weight_only(x, *packed, bias, residual, "silu", *shape)
    torch.testing.assert_close(y, functional.silu(functional.linear(x, weight, bias)) + residual)


@examples
@given(columns, depths, st.sampled_from([1, 3, 8, 32, 100]), st.sampled_from(["int4", "int8"]), st.integers(0, 99))
def test_unpack_undoes_pack(n, k, group, dtype, seed):
    spec = weight_spec(dtype, False, group)
    generator = torch.Generator().manual_seed(seed)
    integers = torch.randint(spec.qmin, spec.qmax + 1, (n, k), dtype=torch.int8, generator=generator)
    packed, size = weight_only.pack(integers, spec), weight_only.group_size(spec, k)
    assert torch.equal(weight_only.unpack(packed, n, k, size), integers)


def test_packing_is_the_documented_order():
    integers = torch.randint(-8, 8, (70, 21), dtype=torch.int8)
    nibbles = weight_only.pack(integers, weight_spec("int4", True, 10))
    assert nibbles.shape == (2, 3, 2, 64, 4)
    word = nibbles[1, 2 - 1, 0, 3].tolist()  # depths 10 … 17 of row 67
    assert word == [(int(integers[67, 10 + j]) & 15) | (int(integers[67, 14 + j]) & 15) << 4 for j in range(4)]
    assert nibbles[1, 0, 1, 3, 2:].tolist() == [0, 0], "beyond the group's 10 depths"
    assert nibbles[1, 0, 0, 6:].sum() == 0, "beyond N"
    octets = weight_only.pack(integers, weight_spec("int8", True, 10))
    assert octets.shape == (2, 3, 12, 64)
    assert octets[1, 1, 4, 3] == integers[67, 14]
    assert octets[0, 0, 10:].abs().sum() == 0, "beyond the group's 10 depths"


@pytest.mark.parametrize("kind", WEIGHT_KINDS, ids=lambda kind: f"{kind[0]}-{'symmetric' if kind[1] else 'affine'}")
def test_integers_are_multiplied_exactly(native_isa, kind):
    """Whole numbers and scales that are powers of two leave nothing to round."""
    n, k, size = 65, 40, 16
    spec = QuantSpec(dtype=kind[0], symmetric=kind[1], granularity="per-group", group_size=size)
    generator = torch.Generator().manual_seed(1)
    form = spec.format
    integers = torch.randint(spec.qmin, spec.qmax + 1, (n, k), generator=generator).to(form.torch_dtype)
    scale = 2.0 ** torch.randint(-3, 4, (n, 3), generator=generator)
    zeros = torch.randint(form.minimum, form.maximum + 1, (n, 3), generator=generator).to(torch.int32)
    if spec.symmetric:
        zeros = torch.full_like(zeros, 0 if form.signed else (form.maximum + 1) // 2)
    x = torch.randint(-9, 10, (13, k), generator=generator).float()
    packed_scale, packed_zeros = (weight_only.pack_parameter(each, (n, k), spec) for each in (scale, zeros))
    packed = (weight_only.pack(integers, spec), packed_scale, None if spec.symmetric else packed_zeros)
    weight = dequantize(integers, QParams(scale, zeros, None, size))
    assert torch.equal(run(x, packed, (n, size)), (x.double() @ weight.double().t()).float())


@pytest.mark.parametrize("dtype", ["int4", "int8"])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_is_the_same_alone_in_a_batch_and_with_threads(native_isa, dtype, threads):
    n, k = 320, 1024  # five blocks, which two threads share by rows where there are many
    packed, shape, _ = layer(n, k, weight_spec(dtype, False, 32))
    x, bias = torch.randn(130, k, generator=torch.Generator().manual_seed(3)), torch.randn(n)
    alone = torch.cat([run(row, packed, shape, bias) for row in x.split(1)])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for rows in (130, 100, 31, 7, 6, 5, 4, 3, 2):
            assert torch.equal(run(x[:rows], packed, shape, bias), alone[:rows]), rows
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "affine"])
@pytest.mark.parametrize("dtype", ["int4", "int8"])
@pytest.mark.parametrize("magnitude", [0.0, 1e-42, 1e-30, 1e30, 1e37], ids=str)
def test_extreme_rows(native_isa, dtype, symmetric, magnitude):
    """Neither 127·x nor the sum of a group leaves float32 where the product with the weights stays in it."""
    packed, shape, weight = layer(70, 9, weight_spec(dtype, symmetric, 4))
    x = torch.randn(7, 9, generator=torch.Generator().manual_seed(2)) * magnitude
    y, expected = run(x, packed, shape), in_float64(taken(x, native_isa), weight, None, None, "none")
    slack = 1e-5 * magnitude * 9 + 2.0**-148
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=slack)


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "affine"])
@pytest.mark.parametrize("dtype", ["int4", "int8"])
def test_nan_and_infinities_are_those_of_torch(native_isa, dtype, symmetric):
    packed, shape, weight = layer(70, 9, weight_spec(dtype, symmetric, 4))
    x = torch.randn(7, 9)
    x[1, 3], x[2, 8], x[3, 0], x[4, 1], x[4, 2] = float("inf"), -float("inf"), float("nan"), float("inf"), 2.0
    y, expected = run(x, packed, shape), functional.linear(taken(x, native_isa), weight)
    torch.testing.assert_close(y, expected, equal_nan=True, rtol=1e-4, atol=1e-4)
    assert y[:1].isfinite().all()
    assert y[5:].isfinite().all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_activation_of_the_first_columns(native_isa, activation):
    (packed, scale, zero_point), shape, _ = layer(130, 24, weight_spec("int4", False, 8))
    x, bias, residual = torch.randn(7, 24).bfloat16().float(), torch.randn(130), torch.randn(7, 130)
    weight = (packed, scale, zero_point)
    with_it, without = run(x, weight, shape, bias, residual, activation), run(x, weight, shape, bias, residual)
    for some in (0, 64, 128, 192):
        expected = torch.cat((with_it[:, :some], without[:, some:]), 1)
        arguments = (x, *weight, bias, residual, activation, *shape, some)
        assert torch.equal(op(*arguments), expected)
        torch.testing.assert_close(weight_only.packed_linear_weight_only(*arguments), expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(RuntimeError, match=r"the first 60 columns have an activation, which are no whole blocks of 64"):
        op(x, *weight, bias, residual, activation, *shape, 60)


def test_strided_activations(native_isa):
    packed, shape, _ = layer(20, 24, weight_spec("int4", False, 8))
    for x in (torch.randn(24, 50).t(), torch.randn(5, 6, 48)[:, ::2, ::2], torch.randn(24).expand(4, 24)):
        assert torch.equal(run(x, packed, shape), run(x.contiguous(), packed, shape))


def test_no_depth_at_all(native_isa):
    packed, shape, _ = layer(5, 0, weight_spec("int4", False, 8))
    bias = torch.randn(5)
    assert torch.equal(run(torch.randn(3, 0), packed, shape, bias), bias.expand(3, 5))


def test_a_broadcast_residual_and_half_precision(native_isa):
    packed, shape, weight = layer(10, 12, weight_spec("int8", True, None))
    x, residual = torch.randn(2, 3, 12), torch.randn(3, 1)
    expected = functional.linear(taken(x, native_isa), weight) + residual
    torch.testing.assert_close(run(x, packed, shape, None, residual), expected)
    assert run(x.bfloat16(), packed, shape).dtype is torch.float32


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"x": torch.randn(2, 13)}, r"x has 13 features, in groups of 4; the packed weight is \[1, 3, 1, 64, 4\]"),
        ({"shape": (70, 4)}, r"70 columns need a packed weight of 2 blocks and scales \[2, 3, 64\], not 1 and"),
        ({"shape": (10, 0)}, r"a group of 0 weights"),
        ({"bias": torch.randn(9)}, r"the bias is not one value for each of 10 columns"),
        ({"activation": "gelu_tan"}, r"unknown activation 'gelu_tan'; known: none, relu, gelu, gelu_tanh, silu"),
        ({"activation": "add_relu"}, r"unknown activation 'add_relu'"),  # a convolution's alone
        ({"zero_point": torch.zeros(1, 3, 10, dtype=torch.int8)}, r"the zero points are not one for each scale"),
        ({"packed": torch.zeros(1, 3, 64, dtype=torch.int8)}, r"the weight is not packed"),
    ],
    ids=["features", "columns", "group", "bias", "activation", "of-convolutions", "zero-points", "packed"],
)
def test_what_does_not_fit_is_named(change, text):
    if not native.available():
        pytest.skip("the C++ kernels are not available")
    (packed, scale, zero_point), shape, _ = layer(10, 12, weight_spec("int4", False, 4))
    weight = (change.get("packed", packed), scale, change.get("zero_point", zero_point))
    arguments = (change.get("bias"), None, change.get("activation", "none"), *change.get("shape", shape))
    with pytest.raises(RuntimeError, match=text):
        op(change.get("x", torch.randn(2, 12)), *weight, *arguments)


@pytest.mark.parametrize("dtype", ["int4", "int8"])
def test_packed_weights_copy_and_export(dtype):
    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            packed, self.shape, _ = layer(10, 12, weight_spec(dtype, False, 4))
            for name, tensor in zip(("packed", "scale", "zero_point"), packed, strict=True):
                self.register_buffer(name, tensor)

        def forward(self, x):
            return op(x, self.packed, self.scale, self.zero_point, None, None, "gelu", *self.shape)

    model, x = Layer(), torch.randn(2, 3, 12)
    assert torch.equal(copy.deepcopy(model)(x), model(x))
    sizes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    program = torch.export.export(model, (x,), dynamic_shapes=(sizes,), strict=False)
    more = torch.randn(4, 5, 12)
    assert torch.equal(program.module()(more), model(more))


@pytest.mark.parametrize("dtype", ["int4", "int8"])
def test_opcheck(dtype):
    packed, shape, _ = layer(10, 12, weight_spec(dtype, False, 4))
    torch.library.opcheck(op.default, (torch.randn(2, 12), *packed, torch.randn(10), torch.randn(10), "relu", *shape))
