import numpy as np
import pytest
import torch

from fxquant import observers
from fxquant.spec import QuantSpec


def chosen(x, percentile, **fields):
    options = (("method", "percentile"), ("percentile", percentile))
    observer = observers.create(QuantSpec(observer="histogram", options=options, **fields))
    for part in x.split(4001):
        observer(part)
    low, high = observer._range()
    return low.double().numpy(), high.double().numpy(), observer.histogram().width.numpy()


@pytest.fixture(scope="module")
def normal():
    return torch.randn(40_000, generator=torch.Generator().manual_seed(0))


def keep(values, percent_cut):
    """Return the largest value left once `percent_cut` percent of the values, rounded down, are cut above it."""
    return np.sort(values)[len(values) - 1 - round(len(values) * percent_cut) // 100]


@pytest.mark.parametrize("percentile", [50, 90.0, 99, 99.9, 99.99])
def test_affine_cuts_half_of_the_rest_at_each_end(normal, percentile):
    low, high, width = chosen(normal, percentile)
    wanted_low = -keep(-normal.numpy(), (100 - percentile) / 2)
    wanted_high = keep(normal.numpy(), (100 - percentile) / 2)
    assert wanted_low - width <= low <= wanted_low
    assert wanted_high <= high <= wanted_high + width


@pytest.mark.parametrize("percentile", [50, 90.0, 99, 99.9, 99.99])
def test_symmetric_keeps_a_share_of_the_magnitudes(normal, percentile):
    low, high, width = chosen(normal, percentile, symmetric=True)
    wanted = keep(normal.abs().numpy(), 100 - percentile)
    assert low == -high
    assert wanted <= high <= wanted + width


def test_hundred_percent_is_the_exact_range(normal):
    low, high, _ = chosen(normal, 100)
    assert (low, high) == (float(normal.min()), float(normal.max()))


def test_default_keeps_all_but_one_in_ten_thousand(normal):
    observer = observers.create(QuantSpec(observer="histogram", symmetric=True, options=(("method", "percentile"),)))
    observer(normal)
    _, wanted, _ = chosen(normal, 99.99, symmetric=True)
    assert float(observer.qparams().scale) == pytest.approx(float(wanted) / 127)


def test_one_sided_data_keep_zero_at_the_other_end(normal):
    low, high, _ = chosen(normal.abs() + 3, 99)
    assert low == 0
    assert 3 < high < float(normal.abs().max()) + 3
    low, high, _ = chosen(-normal.abs() - 3, 99)
    assert high == 0
    assert low < -3


def test_each_channel_has_its_own_percentile(normal):
    x = torch.stack([normal, normal * 1e-6, normal * 50])
    low, high, _ = chosen(x.reshape(3, -1), 99, granularity="per-channel")
    for channel, row in enumerate(x):
        alone_low, alone_high, _ = chosen(row, 99)
        assert (low[channel], high[channel]) == (alone_low, alone_high)
