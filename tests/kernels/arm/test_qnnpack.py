"""torch's qnnpack engine behind our ops: the reference's results to one step, asked for and never taken unasked."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from linears import integer_layer, random

import fxquant.kernels  # noqa: F401  (defines the ops)
from fxquant.errors import ConfigError
from fxquant.kernels.arm import qnnpack
from fxquant.kernels.cpu.isa import VARIABLE

ops = torch.ops.fxquant
ENGINES = torch.backends.quantized.supported_engines
needs_engine = pytest.mark.skipif("qnnpack" not in ENGINES, reason="this build of torch has no qnnpack")
each = settings(deadline=None, max_examples=60)


def layer(width, depth, seed, per_channel=True):
    weight, scale, bias = integer_layer(width, depth, seed)
    return weight, scale if per_channel else scale.amax(), bias


@needs_engine
@each
@given(
    st.tuples(st.sampled_from([(), (0,), (1,), (5,), (2, 3)]), st.integers(1, 70), st.integers(1, 40)),
    st.sampled_from(["none", "relu"]),
    st.sampled_from([torch.uint8, torch.int8]),
    st.booleans(),
    st.booleans(),
    st.integers(-20, 3),
    st.integers(0, 99),
)
def test_a_static_linear_equals_the_reference_to_one_step(sizes, activation, dtype, biased, by_channel, power, seed):
    batch, depth, width = sizes
    weight, weight_scale, bias = layer(width, depth, seed, by_channel)
    limits = torch.iinfo(dtype)
    x = torch.randint(limits.min, limits.max + 1, (*batch, depth), dtype=dtype)
    x_scale, out_scale = torch.tensor(0.02), torch.tensor(0.05 * 2.0**power)
    bias = bias if biased else None
    assume(qnnpack.fits(x_scale, weight_scale, bias, out_scale))
    start = (x, x_scale, torch.tensor(limits.min + 117, dtype=torch.int32), weight, weight_scale, bias)
    for qmin, qmax in ((limits.min, limits.max), (limits.min + 1, limits.max - 9)):
        stored = (out_scale, torch.tensor(limits.min + 60, dtype=torch.int32), qmin, qmax, dtype)
        y = ops.qnnpack_linear_int8(*start, activation, *stored)
        expected = ops.linear_int8(*start, None, activation, *stored)
        assert (y.dtype, y.shape) == (dtype, (*batch, width))
        assert not y.numel() or (y.int() - expected.int()).abs().amax() <= 1
        assert not y.numel() or (qmin <= y.amin() and y.amax() <= qmax)


@needs_engine
@each
@given(
    st.tuples(st.sampled_from([(), (0,), (1,), (5,), (2, 3)]), st.integers(1, 70), st.integers(1, 40)),
    st.sampled_from(["none", "relu", "gelu", "gelu_tanh", "silu"]),
    st.booleans(),
    st.integers(0, 99),
)
def test_a_dynamic_linear_equals_the_reference_to_one_step_of_its_activations(sizes, activation, biased, seed):
    batch, depth, width = sizes
    weight, weight_scale, bias = layer(width, depth, seed)
    bias = bias if biased else None
    x, residual = random(*batch, depth, seed=seed) * 2 + 0.5, random(*batch, width, seed=seed)
    y = ops.qnnpack_linear_dynamic_int8(x, weight, weight_scale, bias, residual, activation)
    assert y.shape == (*batch, width)
    if not x.numel():
        return
    scale, zero_point = ops.choose_qparams(x, "uint8", "per-tensor", None, False, "restricted")
    q = ops.quantize(x, scale, zero_point, None, 0, 255, torch.uint8)
    tail = (bias, residual, activation, None, None, 0, 0, torch.float32)
    expected = ops.linear_int8(q, scale, zero_point, weight, weight_scale, *tail)
    # torch chooses zero points by another rule and rounds ties by another quotient: single values may be a step away.
    step = scale * weight.float().abs().sum(1).amax() * weight_scale.amax()
    assert (y - expected).abs().amax() <= 1.2 * step
    if x.numel() >= 20:
        assert (y - expected).abs().mean() <= 0.1 * step


@needs_engine
def test_the_engine_in_use_stays_and_packing_is_done_once():
    before = torch.backends.quantized.engine
    weight, scale, bias = layer(5, 8, 0)
    packed = qnnpack.packed_weight(weight, scale, bias)
    assert torch.backends.quantized.engine == before
    assert qnnpack.packed_weight(weight, scale, bias) is packed
    bias.add_(1)
    assert qnnpack.packed_weight(weight, scale, bias) is not packed


def test_scales_beyond_the_requantization_of_the_engine_do_not_fit():
    one, weight_scale = torch.tensor(1.0), torch.tensor([0.5, 0.25])
    assert qnnpack.fits(one, weight_scale, None, torch.tensor(0.51))
    assert not qnnpack.fits(one, weight_scale, None, torch.tensor(0.5)), "a bias would be rounded to whole steps"
    assert not qnnpack.fits(one, weight_scale, None, torch.tensor(2.0**31)), "the shift is too long"
    assert not qnnpack.fits(one, weight_scale, torch.tensor([2.0**30, 0.0]), one), "the bias leaves int32"
    assert not qnnpack.fits(one, torch.tensor([torch.nan, 0.5]), None, one)


def test_it_is_taken_only_where_it_is_asked_for(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert not qnnpack.asked_for()
    monkeypatch.setenv(VARIABLE, "portable")
    assert not qnnpack.asked_for()


def test_a_build_of_torch_without_the_engine_is_an_error(monkeypatch):
    monkeypatch.setenv(VARIABLE, "qnnpack")
    monkeypatch.setattr(qnnpack, "engines", lambda: ["onednn", "fbgemm"])
    with pytest.raises(
        ConfigError, match="'qnnpack', but this build of torch has no such engine; it has onednn, fbgemm"
    ):
        qnnpack.asked_for()
