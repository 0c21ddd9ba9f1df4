import numpy as np
import pytest
import torch

from fxquant import observers
from fxquant.spec import QuantSpec


def averages(batches, constant):
    """Compute the two averages in float64."""
    low, high = batches[0].min(), batches[0].max()
    for batch in batches[1:]:
        low, high = low + constant * (batch.min() - low), high + constant * (batch.max() - high)
    return low, high


@pytest.mark.parametrize("constant", [0.01, 0.3, 1])
def test_averages_of_extremes(constant):
    batches = np.random.default_rng(0).normal(size=(40, 25)) * 3
    options = (("averaging_constant", constant),)
    observer = observers.create(QuantSpec(observer="moving_average", options=options))
    for batch in batches:
        observer(torch.from_numpy(batch))
    assert [float(observer.low), float(observer.high)] == pytest.approx(averages(batches, constant), rel=1e-5)


def test_default_constant_is_one_percent():
    observer = observers.create(QuantSpec(observer="moving_average"))
    observer(torch.tensor([0.0, 100.0]))
    observer(torch.tensor([-100.0, 0.0]))
    assert [float(observer.low), float(observer.high)] == pytest.approx([-1.0, 99.0])


def test_largest_floats_do_not_overflow():
    observer = observers.create(QuantSpec(observer="moving_average"))
    for value in (-3e38, 3e38):
        observer(torch.tensor([value]))
    assert float(observer.low) == pytest.approx(-2.94e38)
    assert bool(torch.isfinite(observer.qparams().scale))


def test_merge_weighs_by_batches():
    one, three = (observers.create(QuantSpec(observer="moving_average")) for _ in range(2))
    one(torch.tensor([-8.0, 4.0]))
    for _ in range(3):
        three(torch.tensor([0.0, 8.0]))
    one.merge(three)
    assert [float(one.low), float(one.high)] == pytest.approx([-2.0, 7.0])
    assert int(one.batches) == 4
