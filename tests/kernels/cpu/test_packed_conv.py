"""Packed convolutions: what they mean without a compiler, and the C++ kernels on each instruction set against that."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from instruction_sets import using

import fxquant.kernels
from fxquant.kernels.cpu import packed_conv
from fxquant.kernels.reference.conv import conv_int8

assert fxquant.kernels  # defines the ops
ops = torch.ops.fxquant
FLOAT = (None, None, 0, 0, torch.float32)
examples = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
KINDS = ("whole", "groups", "depthwise", "pointwise")


@st.composite
def layers(draw, kinds=KINDS):
    """Draw x [B, C, …] in float, a weight with its scale and bias, and options, for a kernel that fits."""
    kind, axes = draw(st.sampled_from(kinds)), draw(st.integers(1, 2))
    groups = {"whole": 1, "groups": draw(st.sampled_from([2, 3])), "depthwise": draw(st.sampled_from([5, 64, 70]))}.get(
        kind, 1
    )
    kernel, stride, padding, dilation = (
        [draw(st.integers(low, high)) if kind != "pointwise" else low for _ in range(axes)]
        for low, high in ((1, 4), (1, 3), (0, 2), (1, 2))
    )
    least = [gap * (side - 1) + 1 - 2 * pad for side, gap, pad in zip(kernel, dilation, padding, strict=True)]
    sizes = [max(low, 1) + draw(st.integers(0, 5)) for low in least]
    inner = 1 if kind == "depthwise" else draw(st.sampled_from([1, 3, 4, 8, 17]))
    columns = 1 if kind == "depthwise" else draw(st.sampled_from([1, 4, 64, 67]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    x = torch.randn(draw(st.integers(0, 3)), groups * inner, *sizes, generator=generator) * 3
    weight = torch.randint(-128, 128, (groups * columns, inner, *kernel), dtype=torch.int8, generator=generator)
    scale = torch.rand(len(weight), generator=generator) / 50 + 1e-4
    bias = torch.randn(len(weight), generator=generator) if draw(st.booleans()) else None
    if draw(st.booleans()):
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    return x, weight, scale, bias, (stride, padding, dilation, groups)


def packed(layer):
    """Return the operands of a packed op behind x: weight, scale and sums."""
    _, weight, scale, _, (*_, groups) = layer
    return packed_conv.pack_filters(weight, groups), scale, weight.flatten(1).sum(1, dtype=torch.int32)


@examples
@given(layers())
def test_unpack_undoes_pack(layer):
    _, weight, _, _, (*_, groups) = layer
    assert torch.equal(packed_conv.unpack_filters(packed(layer)[0], weight.shape, groups), weight)


def test_packing_is_the_documented_permutation():
    weight = torch.randint(-127, 128, (4, 3, 2, 2), dtype=torch.int8)
    blocks = packed_conv.pack_filters(weight, 2)
    assert blocks.shape == (2, 3, 64, 4)
    assert blocks[1, 1, 0, 1] == weight[2, 2, 0, 1], "depth 5 is channel 2 of the second tap"
    alone = packed_conv.pack_filters(weight[:, :1], 4)
    assert alone.shape == (4, 64)
    assert alone[3, 2] == weight[2, 0, 1, 1]


def quantized(x, dtype, by_sample):
    granularity = "per-sample" if by_sample else "per-tensor"
    scale, zero_point = ops.choose_qparams(x, dtype, granularity, None, False, "restricted")
    low = -128 if dtype == "int8" else 0
    return ops.quantize(x, scale, zero_point, None, low, low + 255, getattr(torch, dtype)), scale, zero_point


@examples
@given(
    layers(),
    st.sampled_from(["uint8", "int8"]),
    st.booleans(),
    st.sampled_from(["none", "relu", "gelu"]),
    st.booleans(),
)
def test_static_equals_the_reference_to_the_bit(native_isa, layer, dtype, by_sample, activation, requantized):
    x, weight, scale, bias, options = layer
    q = quantized(x, dtype, by_sample)
    out = (torch.tensor(0.05), torch.tensor(7, dtype=torch.int32), 0, 250, torch.uint8) if requantized else FLOAT
    found = ops.packed_conv_int8(*q, *packed(layer), bias, None, activation, list(weight.shape[2:]), *options, *out)
    expected = conv_int8(*q, weight, scale, bias, None, activation, *options, *out)
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


@examples
@given(
    layers(), st.sampled_from(["uint8", "int8"]), st.booleans(), st.booleans(), st.sampled_from(["none", "add_relu"])
)
def test_dynamic_equals_its_steps_to_the_bit(native_isa, layer, dtype, symmetric, by_sample, activation):
    x, weight, _, bias, options = layer
    scheme = (dtype, "per-sample" if by_sample else "per-tensor", symmetric, "restricted")
    operands = (*packed(layer), bias)
    residual = torch.randn_like(
        packed_conv.conv_dynamic_int8(x, *operands, None, "none", weight.shape[2:], *options, *scheme)
    )
    tail = (residual, activation, list(weight.shape[2:]), *options, *scheme)
    found = ops.packed_conv_dynamic_int8(x, *operands, *tail)
    assert torch.equal(found, packed_conv.conv_dynamic_int8(x, *operands, *tail))
    assert found.movedim(1, -1).is_contiguous(), "channels side by side"


def large(batch, inner, side, columns, kernel, groups=1):
    """Return a layer that more than one thread shares."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, inner, side, side, generator=generator)
    weight = torch.randint(-128, 128, (columns, inner // groups, kernel, kernel), dtype=torch.int8, generator=generator)
    scale, bias = torch.rand(columns, generator=generator), torch.randn(columns, generator=generator)
    return x, weight, scale, bias, ([1, 1], [kernel // 2] * 2, [1, 1], groups)


LARGE = {
    "one image": large(1, 16, 40, 80, 3),
    "more images than threads": large(5, 16, 20, 80, 3),
    "fewer rows than threads want": large(1, 512, 3, 512, 3),
    "groups": large(1, 96, 20, 96, 5, 2),
    "depthwise": large(2, 64, 60, 64, 5, 64),
    "pointwise": large(2, 64, 24, 128, 1),
}


@pytest.mark.parametrize("name", LARGE)
def test_on_several_threads(name):
    layer = LARGE[name]
    x, weight, _, bias, options = layer
    before = torch.get_num_threads()
    with using(""):
        try:
            results = []
            for threads in (1, 3):
                torch.set_num_threads(threads)
                scheme = ("uint8", "per-sample", False, "restricted")
                operands = (x, *packed(layer), bias, None, "relu", list(weight.shape[2:]), *options, *scheme)
                results.append(ops.packed_conv_dynamic_int8(*operands))
        finally:
            torch.set_num_threads(before)
    assert torch.equal(*results)
    assert torch.equal(results[0], packed_conv.conv_dynamic_int8(*operands))


def test_values_that_are_not_finite_come_out_as_nan():
    layer = large(2, 3, 6, 4, 3)
    x, weight, _, bias, options = layer
    x[0, 0, 0, 0] = float("inf")
    scheme = ("uint8", "per-sample", False, "restricted")
    with using(""):
        y = ops.packed_conv_dynamic_int8(
            x, *packed(layer), bias, None, "none", list(weight.shape[2:]), *options, *scheme
        )
    assert y[0].isnan().all()
    assert y[1].isfinite().all()


def test_fake_tensors_have_shape_strides_and_dtype():
    layer = large(2, 6, 8, 4, 3, 2)
    x, weight, _, bias, options = layer
    tail = (bias, None, "relu", list(weight.shape[2:]), *options)
    scheme = ("uint8", "per-sample", False, "restricted")
    out = (torch.tensor(0.05), torch.tensor(7, dtype=torch.int32), 0, 250, torch.uint8)
    for target, arguments in (
        (ops.packed_conv_dynamic_int8.default, (x, *packed(layer), *tail, *scheme)),
        (ops.packed_conv_int8.default, (*quantized(x, "uint8", True), *packed(layer), *tail, *FLOAT)),
        (ops.packed_conv_int8.default, (*quantized(x, "uint8", False), *packed(layer), *tail, *out)),
    ):
        torch.library.opcheck(target, arguments, test_utils="test_faketensor")


REFUSED = {
    "kernel beyond the image": ({"kernel": [9, 9]}, "a kernel that reaches over 9 places, of 8 with padding"),
    "groups": ({"groups": 4}, "6 channels and 4 results do not fall into 4 groups"),
    "granularity": ({"granularity": "per-token"}, "granularity 'per-token'; known: per-sample, per-tensor"),
    "activation": ({"activation": "tanh"}, "unknown activation 'tanh'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused(name):
    layer = large(2, 6, 8, 4, 3, 2)
    x, _, _, bias, _ = layer
    arguments = {
        "activation": "relu",
        "kernel": [3, 3],
        "stride": [1, 1],
        "padding": [0, 0],
        "dilation": [1, 1],
        "groups": 2,
    }
    scheme = {"dtype": "uint8", "granularity": "per-sample", "symmetric": False, "range": "restricted"}
    changes, reason = REFUSED[name]
    with using(""), pytest.raises(RuntimeError, match=reason):
        ops.packed_conv_dynamic_int8(x, *packed(layer), bias, None, **{**arguments, **scheme, **changes})
