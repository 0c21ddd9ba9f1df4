import copy
import weakref

import pytest
import torch

from fxquant import observers
from fxquant.errors import CalibrationError, ConfigError
from fxquant.numerics import choose_qparams
from fxquant.spec import QuantSpec

STATIC = ["minmax", "moving_average", "histogram"]
EVERY = pytest.mark.parametrize("name", STATIC)


def spec(name="minmax", options=(), **fields):
    return QuantSpec(observer=name, options=tuple(options), **fields)


def state(observer):
    return {name: buffer.clone() for name, buffer in observer.state_dict().items()}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "minmaxx"}, r"unknown observer 'minmaxx': did you mean 'minmax'\? Known: histogram, least_squares, "),
        ({"options": [("bins", 9)]}, r"observer 'minmax' has no option 'bins': Known: \(none\)"),
        (
            {"name": "histogram", "options": [("bin", 512)]},
            r"'histogram' has no option 'bin': did you mean 'bins'\? Known: bins, method, percentile",
        ),
        ({"name": "histogram", "options": [("bins", 1000)]}, r"bins = 1000: expected a power of two from 512 to 65536"),
        ({"name": "histogram", "options": [("bins", [512])]}, r"bins = \[512\]: expected a power of two"),
        ({"name": "histogram", "options": [("method", "kl")]}, r"method = 'kl': expected 'mse', 'entropy' or"),
        (
            {"name": "histogram", "options": [("method", "percentile"), ("percentile", 101)]},
            r"percentile = 101: expected a number above 0, at most 100",
        ),
        (
            {"name": "histogram", "options": [("method", "percentile"), ("percentile", True)]},
            r"percentile = True: expected a number",
        ),
        (
            {"name": "histogram", "options": [("percentile", 99)]},
            r"percentile has a meaning beside method = 'percentile'",
        ),
        (
            {"name": "histogram", "dtype": "float8_e4m3fn", "symmetric": True},
            r"up to 8 bits, not float8_e4m3fn",
        ),
        ({"name": "histogram", "dtype": "int32"}, r"integers of up to 8 bits, not int32: use 'minmax'"),
        ({"name": "moving_average", "options": [("averaging_constant", 0)]}, r"averaging_constant = 0: expected a num"),
        (
            {"name": "histogram", "granularity": "per-token", "dynamic": True},
            r"'histogram' keeps per-tensor or per-channel ranges, not per-token: use one of these, or observer = 'minm",
        ),
        (
            {"name": "moving_average", "granularity": "per-token", "dynamic": True},
            r"'moving_average' keeps per-tensor or per-channel ranges, not per-token",
        ),
    ],
    ids=lambda value: "-".join(str(part) for part in value.values()) if isinstance(value, dict) else "",
)
def test_create_refuses_what_it_does_not_know(fields, message):
    with pytest.raises(ConfigError, match=message):
        observers.create(spec(**fields))


@EVERY
def test_forward_returns_the_very_tensor_and_keeps_gradients(name):
    x = torch.randn(4, 5, requires_grad=True)
    observer = observers.create(spec(name))
    y = observer(x)
    assert y is x
    (y * 2).sum().backward()
    assert torch.equal(x.grad, torch.full((4, 5), 2.0))
    assert not any(buffer.requires_grad for buffer in observer.buffers())
    assert not list(observer.parameters())


@EVERY
@pytest.mark.parametrize("granularity", ["per-tensor", "per-channel"])
def test_memory_depends_on_no_batch(name, granularity):
    observer = observers.create(spec(name, granularity=granularity))
    sizes = set()
    for _ in range(5):
        x = torch.randn(3, 50)
        alive = weakref.ref(observer(x))
        del x
        assert alive() is None
        sizes.add(sum(buffer.numel() for buffer in observer.buffers()))
    assert len(sizes) == 1
    assert int(observer.batches) == 5


@EVERY
def test_nothing_seen_is_an_error_and_empty_tensors_show_nothing(name):
    observer = observers.create(spec(name))
    observer(torch.empty(0, 4))
    assert not observer.observed
    with pytest.raises(CalibrationError, match="has seen no data: run at least one batch"):
        observer.qparams()


@EVERY
@pytest.mark.parametrize("symmetric", [False, True], ids=["affine", "symmetric"])
def test_only_zeros_per_tensor_is_an_error(name, symmetric):
    observer = observers.create(spec(name, symmetric=symmetric))
    observer(torch.zeros(3))
    observer(torch.zeros(2))
    with pytest.raises(CalibrationError, match="range is zero: the 2 batches held nothing but zeros"):
        observer.qparams()
    observer(torch.tensor([0.0, 1.0]))
    assert float(observer.qparams().scale) > 0


@pytest.mark.parametrize("method", ["mse", "entropy", "percentile", None])
@pytest.mark.parametrize("symmetric", [False, True], ids=["affine", "symmetric"])
def test_channels_of_zeros_get_scale_one(method, symmetric):
    options = [("method", method)] if method else []
    name = "histogram" if method else "minmax"
    observer = observers.create(spec(name, options, granularity="per-channel", symmetric=symmetric))
    observer(torch.stack([torch.zeros(64), torch.linspace(-1, 1, 64)]))
    scale, zero_point, axis, _ = observer.qparams()
    assert axis == 0
    assert float(scale[0]) == 1.0
    assert 0 < float(scale[1]) <= 2.01 / 255
    assert zero_point.shape == (2,)


@EVERY
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0, float("nan"), 3.0], r"1 NaN and 0 Inf among the 3 values of a tensor of shape \[3\]"),
        ([float("inf"), float("-inf"), float("nan")], r"1 NaN and 2 Inf among the 3 values"),
    ],
    ids=["nan", "inf"],
)
def test_nan_and_inf_leave_the_state_alone(name, values, message):
    observer = observers.create(spec(name))
    observer(torch.tensor([1.0, -2.0]))
    before = state(observer)
    with pytest.raises(CalibrationError, match=message) as caught:
        observer(torch.tensor(values))
    assert caught.value.observer is observer
    assert same(before, state(observer))


@EVERY
def test_per_channel_shapes_are_checked(name):
    observer = observers.create(spec(name, granularity="per-channel", axis=1))
    with pytest.raises(CalibrationError, match=r"range along axis 1 of a tensor of shape \[3\]"):
        observer(torch.randn(3))
    observer(torch.randn(2, 5, 7))
    with pytest.raises(CalibrationError, match=r"4 channels along axis 1 of a tensor of shape \[2, 4\].*had 5"):
        observer(torch.randn(2, 4))
    observer(torch.randn(1, 5))
    assert observer.qparams().scale.shape == (5,)


@EVERY
@pytest.mark.parametrize("axis", [0, 1, -1, -2])
def test_per_channel_equals_an_observer_per_channel(name, axis):
    batches = [torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(seed)) * 9 for seed in range(3)]
    together = observers.create(spec(name, granularity="per-channel", axis=axis))
    for batch in batches:
        together(batch)
    scale, zero_point, found_axis, _ = together.qparams()
    assert found_axis == axis
    for channel in range(batches[0].shape[axis]):
        alone = observers.create(spec(name))
        for batch in batches:
            alone(batch.select(axis, channel))
        assert torch.equal(alone.qparams().scale, scale[channel])
        assert torch.equal(alone.qparams().zero_point, zero_point[channel])


@EVERY
@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 7), (2, 3, 5, 7)], ids=str)
def test_odd_shapes(name, shape):
    x = torch.full(shape, 3.0)
    observer = observers.create(spec(name, symmetric=True))
    assert observer(x) is x
    scale, zero_point, axis, _ = observer.qparams()
    assert (scale.shape, zero_point.shape, axis) == ((), (), None)
    assert 2.9 < float(scale) * 127 < 3.05


@EVERY
def test_non_contiguous_equals_contiguous(name):
    x = torch.randn(8, 9, 10, generator=torch.Generator().manual_seed(3))[::2, :, ::3].transpose(0, 2)
    first, second = observers.create(spec(name)), observers.create(spec(name))
    first(x)
    second(x.contiguous())
    assert same(state(first), state(second))


@EVERY
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_other_dtypes_are_observed_as_float32(name, dtype):
    x = torch.arange(-5, 12).to(dtype)
    first, second = observers.create(spec(name)), observers.create(spec(name))
    first(x)
    second(x.float())
    assert same(state(first), state(second))


@EVERY
@pytest.mark.parametrize("granularity", ["per-tensor", "per-channel"])
def test_state_dict_resumes(name, granularity):
    batches = [torch.randn(4, 30, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    whole = observers.create(spec(name, granularity=granularity))
    for batch in batches[:2]:
        whole(batch)
    resumed = observers.create(whole.spec)
    resumed.load_state_dict(state(whole))
    for observer in (whole, resumed):
        for batch in batches[2:]:
            observer(batch)
    assert same(state(whole), state(resumed))
    assert torch.equal(whole.qparams().scale, resumed.qparams().scale)


def test_state_of_another_bin_count_is_refused():
    saved = observers.create(spec("histogram", [("bins", 512)]))
    saved(torch.randn(9))
    with pytest.raises(RuntimeError, match="size mismatch for counts"):
        observers.create(spec("histogram")).load_state_dict(saved.state_dict())


@EVERY
def test_merge_takes_the_only_data_there_is(name):
    empty, full = observers.create(spec(name)), observers.create(spec(name))
    full(torch.randn(30))
    before = state(full)
    full.merge(empty)
    assert same(before, state(full))
    empty.merge(full)
    assert same(before, state(empty))
    empty(torch.randn(30) * 5)
    assert same(before, state(full)), "merging must not share tensors"


@EVERY
@pytest.mark.parametrize("granularity", ["per-tensor", "per-channel"])
def test_merge_is_commutative_and_associative(name, granularity):
    parts = []
    for seed in range(3):
        part = observers.create(spec(name, granularity=granularity))
        for step in range(seed + 1):
            part(torch.randn(2, 40, generator=torch.Generator().manual_seed(10 * seed + step)) * 10.0**seed)
        parts.append(part)
    merged = []
    for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2]):
        first, *rest = (copy.deepcopy(parts[index]) for index in order)
        for each in rest:
            first.merge(each)
        merged.append(first)
    nested = copy.deepcopy(parts[1])
    nested.merge(parts[2])
    outer = copy.deepcopy(parts[0])
    outer.merge(nested)
    for each in [*merged, outer]:
        assert int(each.batches) == 6
        assert torch.allclose(each.qparams().scale, outer.qparams().scale, rtol=1e-6)
        assert torch.equal(each.qparams().zero_point, outer.qparams().zero_point)


def test_merge_refuses_another_spec_and_other_channels():
    one = observers.create(spec(granularity="per-channel"))
    with pytest.raises(ConfigError, match="observers of one spec can be merged, not QuantSpec"):
        one.merge(observers.create(spec(granularity="per-channel", symmetric=True)))
    other = observers.create(one.spec)
    one(torch.ones(3, 2))
    other(torch.ones(4, 2))
    with pytest.raises(CalibrationError, match="observers of 3 and 4 channels cannot be merged"):
        one.merge(other)


@pytest.mark.parametrize("symmetric", [False, True], ids=["affine", "symmetric"])
@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("range", ["restricted", "full"])
def test_qparams_of_minmax_are_those_of_the_data(dtype, symmetric, range):
    x = torch.randn(50, generator=torch.Generator().manual_seed(4))
    observer = observers.create(spec(dtype=dtype, symmetric=symmetric, range=range))
    for part in x.split(7):
        observer(part)
    wanted = choose_qparams(x, observer.spec)
    assert torch.equal(observer.qparams().scale, wanted.scale)
    assert torch.equal(observer.qparams().zero_point, wanted.zero_point)
