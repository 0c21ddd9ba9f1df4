import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fxquant import numerics
from fxquant.spec import QParams, QuantSpec

SPECS = [
    pytest.param(QuantSpec(dtype=dtype, symmetric=symmetric, range=range), id=f"{dtype}-{kind}-{range}")
    for dtype in ("int8", "uint8")
    for symmetric, kind in ((False, "affine"), (True, "symmetric"))
    for range in ("restricted", "full")
]
BOUND = float(np.float32(1e38))
FLOATS = st.floats(-BOUND, BOUND, width=32)
ARRAYS = hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=6), elements=FLOATS)


def expected_qparams(low: float, high: float, spec: QuantSpec) -> tuple[float, int]:
    """Compute scale and zero point of one range in float64, from the definitions."""
    low, high = min(low, 0.0), max(high, 0.0)
    if spec.symmetric:
        bound = max(-low, high)
        if spec.dtype == "uint8":
            return bound / 127, 128
        return (2 * bound / 255 if spec.range == "full" else bound / 127), 0
    scale = (high - low) / 255
    zero = (0 if spec.dtype == "uint8" else -128) - (low / scale if scale else 0.0)
    return scale, int(np.round(zero))


@pytest.mark.parametrize("spec", SPECS)
@settings(deadline=None, max_examples=60)
@given(low=FLOATS, high=FLOATS)
def test_qparams_follow_the_definition(spec, low, high):
    low, high = sorted((low, high))
    scale, zero_point, axis, _ = numerics.qparams_from_range(torch.tensor(low), torch.tensor(high), spec)
    wanted_scale, wanted_zero = expected_qparams(low, high, spec)
    assert (scale.dtype, zero_point.dtype, axis) == (torch.float32, torch.int32, None)
    assert spec.qmin <= int(zero_point) <= spec.qmax
    if wanted_scale > 2 * numerics.SMALLEST_SCALE:
        assert float(scale) == pytest.approx(wanted_scale, rel=1e-6)
        # A tie between two zero points may fall either way in float32.
        assert abs(int(zero_point) - wanted_zero) <= 1
    else:
        assert float(scale) in (numerics.SMALLEST_SCALE, 1.0) or float(scale) == pytest.approx(wanted_scale, rel=1e-6)


@pytest.mark.parametrize("spec", SPECS)
@settings(deadline=None, max_examples=60)
@given(values=ARRAYS)
def test_round_trip_errs_by_at_most_half_a_step(spec, values):
    x = torch.from_numpy(values)
    qparams = numerics.choose_qparams(x, spec)
    back = numerics.fake_quantize(x, qparams, spec).double()
    assert float((back - x.double()).abs().max()) <= float(qparams.scale) * 0.5 * (1 + 1e-4)


@pytest.mark.parametrize("spec", SPECS)
@settings(deadline=None, max_examples=60)
@given(values=ARRAYS)
def test_zero_is_exact(spec, values):
    x = torch.from_numpy(values)
    x.view(-1)[0] = 0.0
    qparams = numerics.choose_qparams(x, spec)
    assert numerics.fake_quantize(x, qparams, spec).reshape(-1)[0] == 0.0


@settings(deadline=None, max_examples=60)
@given(values=ARRAYS)
def test_symmetric_restricted_never_uses_minus_128(values):
    spec = QuantSpec(symmetric=True)
    x = torch.from_numpy(values)
    q = numerics.quantize(x * 3, numerics.choose_qparams(x, spec), spec)
    assert q.dtype is torch.int8
    assert int(q.min()) >= -127


def test_full_range_uses_every_integer():
    spec = QuantSpec(symmetric=True, range="full")
    x = torch.tensor([-255.0, -1.0, 0.0, 2.0, 255.0])
    qparams = numerics.choose_qparams(x, spec)
    assert float(qparams.scale) == 2.0
    assert numerics.quantize(x, qparams, spec).tolist() == [-128, 0, 0, 1, 127]


def test_rounding_is_half_to_even():
    spec = QuantSpec(symmetric=True)
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5])
    q = numerics.quantize(x, QParams(torch.tensor(1.0), torch.tensor(0, dtype=torch.int32)), spec)
    assert q.tolist() == [0, 2, 2, 0, -2]


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
def test_per_channel_equals_each_channel_alone(axis):
    x = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    spec = QuantSpec(granularity="per-channel", axis=axis)
    qparams = numerics.choose_qparams(x, spec)
    assert qparams.axis == axis
    assert qparams.scale.shape == (x.shape[axis],)
    back = numerics.fake_quantize(x, qparams, spec)
    for index in range(x.shape[axis]):
        channel = x.select(axis, index)
        alone = numerics.choose_qparams(channel, QuantSpec())
        assert torch.equal(qparams.scale[index], alone.scale)
        assert torch.equal(back.select(axis, index), numerics.fake_quantize(channel, alone, QuantSpec()))


def test_per_channel_of_a_vector_has_a_scale_per_value():
    x = torch.tensor([127.0, -254.0, 0.0])
    qparams = numerics.choose_qparams(x, QuantSpec(granularity="per-channel", symmetric=True))
    assert qparams.scale.tolist() == [1.0, 2.0, 1.0]


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "affine"])
@pytest.mark.parametrize("dtype", ["int4", "uint4", "int8", "uint8"])
@settings(deadline=None, max_examples=25)
@given(st.integers(0, 3), st.integers(0, 40), st.integers(1, 17), st.integers(0, 99))
def test_per_group_equals_each_group_alone(dtype, symmetric, rows, depth, size, seed):
    x = torch.randn(2, rows, depth, generator=torch.Generator().manual_seed(seed))
    spec = QuantSpec(dtype=dtype, granularity="per-group", group_size=size, symmetric=symmetric)
    qparams = numerics.choose_qparams(x, spec)
    groups = -(-depth // size)
    assert qparams.scale.shape == qparams.zero_point.shape == (2, rows, groups)
    q = numerics.quantize(x, qparams, spec)
    assert q.dtype is spec.format.torch_dtype
    back = numerics.dequantize(q, qparams)
    alone = QuantSpec(dtype=dtype, granularity="per-channel", symmetric=symmetric)
    for start in range(0, depth, size):
        part = x[..., start : start + size].flatten(0, 1)
        expected = numerics.choose_qparams(part, alone)
        assert torch.equal(qparams.scale[..., start // size].reshape(-1), expected.scale)
        assert torch.equal(
            back[..., start : start + size].reshape(part.shape), numerics.fake_quantize(part, expected, alone)
        )


@pytest.mark.parametrize(
    ("spec", "scale", "integers"),
    [
        (QuantSpec(dtype="int4", symmetric=True), 14 / 7, [-7, -1, 0, 7]),
        (QuantSpec(dtype="int4", symmetric=True, range="full"), 2 * 14 / 15, [-8, -1, 0, 7]),
        (QuantSpec(dtype="uint4", symmetric=True), 14 / 7, [1, 7, 8, 15]),
        (QuantSpec(dtype="uint4"), 28 / 15, [0, 7, 8, 15]),
        (QuantSpec(dtype="int4"), 28 / 15, [-8, -1, 0, 7]),
    ],
    ids=["restricted", "full", "unsigned-symmetric", "unsigned-affine", "signed-affine"],
)
def test_four_bits(spec, scale, integers):
    x = torch.tensor([-14.0, -1.5, 0.0, 14.0])
    qparams = numerics.choose_qparams(x, spec)
    assert float(qparams.scale) == pytest.approx(scale)
    assert numerics.quantize(x, qparams, spec).tolist() == integers


def test_per_token_equals_each_token_alone():
    x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(1))
    spec = QuantSpec(granularity="per-token", dynamic=True)
    qparams = numerics.choose_qparams(x, spec)
    assert qparams.scale.shape == (2, 3, 1)
    back = numerics.fake_quantize(x, qparams, spec)
    for row in range(2):
        for token in range(3):
            alone = numerics.choose_qparams(x[row, token], QuantSpec())
            assert torch.equal(back[row, token], numerics.fake_quantize(x[row, token], alone, QuantSpec()))


@pytest.mark.parametrize("shape", [(3,), (3, 5), (3, 2, 4, 4)], ids=str)
def test_per_sample_equals_each_sample_alone(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    spec = QuantSpec(granularity="per-sample", dynamic=True)
    qparams = numerics.choose_qparams(x, spec)
    assert qparams.scale.shape == (3, *[1] * (len(shape) - 1))
    back = numerics.fake_quantize(x, qparams, spec)
    for sample in range(3):
        alone = numerics.choose_qparams(x[sample], QuantSpec())
        assert torch.equal(back[sample], numerics.fake_quantize(x[sample], alone, QuantSpec()))


@pytest.mark.parametrize(
    ("spec", "shape", "scale_shape"),
    [
        (QuantSpec(), (0,), ()),
        (QuantSpec(), (2, 0, 3), ()),
        (QuantSpec(granularity="per-channel", axis=0), (3, 0), (3,)),
        (QuantSpec(granularity="per-channel", axis=1), (3, 0), (0,)),
        (QuantSpec(granularity="per-channel", axis=-1), (0, 4), (4,)),
        (QuantSpec(granularity="per-token", dynamic=True), (2, 0), (2, 1)),
        (QuantSpec(granularity="per-token", dynamic=True), (0, 5), (0, 1)),
        (QuantSpec(granularity="per-sample", dynamic=True), (2, 0, 3), (2, 1, 1)),
        (QuantSpec(granularity="per-sample", dynamic=True), (0, 5), (0, 1)),
    ],
    ids=["flat", "middle", "values", "channels", "batch", "features", "tokens", "samples", "no-samples"],
)
def test_empty_tensor_gets_scale_one_and_quantizes_to_empty(spec, shape, scale_shape):
    x = torch.empty(shape)
    qparams = numerics.choose_qparams(x, spec)
    assert qparams.scale.shape == scale_shape
    assert torch.equal(qparams.scale, torch.ones(scale_shape))
    assert numerics.fake_quantize(x, qparams, spec).shape == x.shape


@pytest.mark.parametrize("spec", SPECS)
def test_scalar_and_non_contiguous_tensors(spec):
    scalar = torch.tensor(3.0)
    assert numerics.fake_quantize(scalar, numerics.choose_qparams(scalar, spec), spec) == pytest.approx(3.0, rel=0.005)
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(2))[::2, ::3].t()
    ours = numerics.fake_quantize(x, numerics.choose_qparams(x, spec), spec)
    dense = x.contiguous()
    assert torch.equal(ours, numerics.fake_quantize(dense, numerics.choose_qparams(dense, spec), spec))


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("magnitude", [1e-45, 1e-40, 1e-38, 1e-30, 1.0, 1e30, 1e38, 3.3e38])
def test_extreme_magnitudes_give_normal_finite_scales(spec, magnitude):
    x = torch.tensor([-magnitude, 0.0, magnitude / 3, magnitude])
    qparams = numerics.choose_qparams(x, spec)
    assert np.isfinite(float(qparams.scale))
    assert float(qparams.scale) >= numerics.SMALLEST_SCALE
    back = numerics.fake_quantize(x, qparams, spec)
    assert bool(back.isfinite().all())
    assert float((back.double() - x.double()).abs().max()) <= float(qparams.scale) * 0.5001


@settings(deadline=None, max_examples=60)
@given(hnp.arrays(np.float64, 20, elements=st.floats(-1e9, 1e9)))
def test_int32_keeps_thirty_bits(values):
    spec = QuantSpec(dtype="int32", symmetric=True)
    x = torch.from_numpy(values)
    qparams = numerics.choose_qparams(x, spec)
    q = numerics.quantize(x, qparams, spec)
    assert q.dtype is torch.int32
    wanted = np.clip(np.round(values / float(qparams.scale)), spec.qmin, spec.qmax)
    assert np.array_equal(q.numpy().astype(np.float64), wanted)


def test_int32_difference_to_a_zero_point_does_not_wrap():
    qparams = QParams(torch.tensor(1.0), torch.tensor(-(2**31), dtype=torch.int32))
    assert float(numerics.dequantize(torch.tensor(2**31 - 1, dtype=torch.int32), qparams)) == 2.0**32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype):
    x = torch.linspace(-1, 1, 999).to(dtype)
    spec = QuantSpec(dtype="uint8")
    qparams = QParams(torch.tensor(0.0078431), torch.tensor(128, dtype=torch.int32))
    wanted = np.clip(np.round(x.double().numpy() / np.float32(0.0078431)) + 128, 0, 255)
    assert np.array_equal(numerics.quantize(x, qparams, spec).numpy(), wanted.astype(np.uint8))


@settings(deadline=None, max_examples=40)
@given(hnp.arrays(np.float32, 20, elements=st.floats(-1e6, 1e6, width=32)))
def test_float8_is_the_nearest_of_its_numbers(values):
    spec = QuantSpec(dtype="float8_e4m3fn", symmetric=True)
    x = torch.from_numpy(values)
    qparams = numerics.choose_qparams(x, spec)
    bound = float(x.abs().max())
    assert float(qparams.scale) == (max(np.float32(bound) / np.float32(448), np.float32(2.0**-120)) if bound else 1.0)
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).double()
    numbers = codes[codes.isfinite()].unique()
    ratio = (x / qparams.scale).double().clamp(-448, 448)
    nearest = (ratio[:, None] - numbers).abs().min(dim=1).values
    q = numerics.quantize(x, qparams, spec)
    assert q.dtype is torch.float8_e4m3fn
    assert torch.equal((q.double() - ratio).abs(), nearest)
    assert torch.equal(numerics.dequantize(q, qparams), q.float() * qparams.scale)


def test_float8_keeps_nan_and_saturates():
    qparams = QParams(torch.tensor(1.0), torch.tensor(0, dtype=torch.int32))
    spec = QuantSpec(dtype="float8_e4m3fn", symmetric=True)
    q = numerics.quantize(torch.tensor([float("nan"), 1e30, -1e30, 449.0]), qparams, spec).float()
    assert q[0].isnan()
    assert q[1:].tolist() == [448, -448, 448]


def test_saturation_at_both_ends():
    qparams = QParams(torch.tensor(0.5), torch.tensor(10, dtype=torch.int32))
    q = numerics.quantize(torch.tensor([-1e30, -100.0, 0.0, 100.0, 1e30]), qparams, QuantSpec())
    assert q.tolist() == [-128, -128, 10, 127, 127]


def test_dequantize_gives_the_dtype_asked_for():
    qparams = QParams(torch.tensor([0.5, 2.0]), torch.tensor([1, -1], dtype=torch.int32), 1)
    q = torch.tensor([[3, 3], [-1, -1]], dtype=torch.int8)
    found = numerics.dequantize(q, qparams, torch.bfloat16)
    assert found.dtype is torch.bfloat16
    assert found.tolist() == [[1.0, 8.0], [-1.0, 0.0]]


def test_sqnr_in_decibels():
    reference = torch.full((100,), 2.0)
    assert numerics.sqnr(reference, reference + 0.02) == pytest.approx(40.0, abs=1e-4)
    assert numerics.sqnr(reference, reference) == float("inf")
    assert numerics.sqnr(torch.zeros(3), torch.ones(3)) == float("-inf")
