import numpy as np
import pytest
import torch

from fxquant import observers
from fxquant.numerics import fake_quantize, qparams_from_range
from fxquant.observers.histogram import Histogram
from fxquant.observers.mse import expected_error, mse_range
from fxquant.spec import QuantSpec

SPECS = [
    pytest.param(QuantSpec(dtype=dtype, symmetric=symmetric, range=range), id=f"{dtype}-{kind}-{range}")
    for dtype, range in (("int8", "restricted"), ("int8", "full"), ("uint8", "restricted"))
    for symmetric, kind in ((False, "affine"), (True, "symmetric"))
]
SAMPLES = {
    "normal": lambda g: torch.randn(20000, generator=g),
    "one-sided": lambda g: torch.randn(20000, generator=g).relu() * 7,
    "skewed": lambda g: torch.randn(20000, generator=g).exp() - 0.5,
    "outliers": lambda g: torch.cat([torch.randn(20000, generator=g), torch.tensor([90.0, -40.0])]),
    "negative": lambda g: -torch.rand(20000, generator=g) * 1e-20,
    "large": lambda g: torch.randn(20000, generator=g) ** 3 * 1e30,
}


def observed(name, spec, method="mse"):
    x = SAMPLES[name](torch.Generator().manual_seed(0))
    fields = {**spec.to_dict(), "observer": "histogram", "options": {"method": method}}
    observer = observers.create(QuantSpec.from_dict(fields))
    observer(x)
    return x, observer


def sampled_error(histogram: Histogram, scale: float, zero_point: int, spec: QuantSpec) -> float:
    """Integrate the squared error numerically: 200 points in each filled bin, float64."""
    counts, width = histogram.counts[0].numpy(), float(histogram.width)
    points = (np.arange(200) + 0.5) / 200
    total = 0.0
    for place in counts.nonzero()[0]:
        x = (place - len(counts) // 2 + points) * width
        q = np.clip(np.round(x / scale) + zero_point, spec.qmin, spec.qmax)
        total += counts[place] * np.mean((x - scale * (q - zero_point)) ** 2)
    return total / counts.sum()


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", SAMPLES)
def test_expected_error_is_the_integral_over_the_histogram(name, spec):
    _, observer = observed(name, spec)
    histogram = observer.histogram()
    shares = torch.tensor([[1.0, 0.6, 0.1]])
    low = histogram.low.unsqueeze(1) * shares
    qparams = qparams_from_range(low, histogram.high.unsqueeze(1) * shares.flip(1), spec)
    found = expected_error(histogram, qparams, spec)
    for candidate in range(3):
        scale, zero_point = float(qparams.scale[0, candidate]), int(qparams.zero_point[0, candidate])
        assert float(found[0, candidate]) == pytest.approx(sampled_error(histogram, scale, zero_point, spec), rel=1e-3)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", SAMPLES)
def test_never_worse_than_minmax_and_near_the_best_of_a_dense_grid(name, spec):
    _, observer = observed(name, spec)
    histogram = observer.histogram()
    low, high = mse_range(histogram, spec)
    chosen = float(expected_error(histogram, qparams_from_range(low.unsqueeze(1), high.unsqueeze(1), spec), spec))
    shares = torch.cartesian_prod(torch.logspace(0, -2, 60), torch.logspace(0, -2, 60)).double()
    grid = qparams_from_range(histogram.low * shares[:, 0], histogram.high * shares[:, 1], spec)
    dense = expected_error(histogram, type(grid)(grid.scale.unsqueeze(0), grid.zero_point.unsqueeze(0)), spec)
    assert chosen <= float(dense[0, 0])
    assert chosen <= float(dense.min()) * 1.02
    assert float(histogram.low) <= float(low) <= 0 or spec.symmetric
    assert 0 <= float(high) <= max(float(histogram.high), -float(histogram.low))


@pytest.mark.parametrize("name", ["normal", "skewed", "outliers", "large"])
def test_error_on_the_data_itself_is_less_than_with_minmax(name):
    spec = QuantSpec()
    x, observer = observed(name, spec)
    clipped = fake_quantize(x, observer.qparams(), spec).double() - x.double()
    whole = observers.create(spec)
    whole(x)
    full = fake_quantize(x, whole.qparams(), spec).double() - x.double()
    assert float(clipped.pow(2).mean()) < float(full.pow(2).mean())


def test_channels_are_searched_apart():
    g = torch.Generator().manual_seed(1)
    x = torch.stack([torch.randn(3000, generator=g) * 10.0**power for power in (-20, -3, 0, 7, 20)])
    spec = QuantSpec(granularity="per-channel", observer="histogram")
    together = observers.create(spec)
    together(x)
    for channel, row in enumerate(x):
        alone = observers.create(QuantSpec(observer="histogram"))
        alone(row)
        assert torch.equal(alone.qparams().scale, together.qparams().scale[channel])
