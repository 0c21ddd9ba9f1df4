"""Ranges of channels, and the factors that move outliers from activations to weights."""

import pytest
import torch

from fxquant import observers
from fxquant.errors import CalibrationError, ConfigError
from fxquant.spec import QuantSpec


def observer(*batches, **options):
    made = observers.create(QuantSpec(dtype="uint8", observer="smooth", options=tuple(sorted(options.items()))))
    for batch in batches:
        made(batch)
    return made


def rows(peaks, seed=0):
    """Rows whose channels reach these magnitudes, and no further."""
    x = torch.rand(50, len(peaks), generator=torch.Generator().manual_seed(seed)) * 2 - 1
    x[0], x[1] = 1, -1
    return x * torch.tensor(peaks)


PEAKS = [8.0, 1.0, 2.0, 0.5, 1.0]


def test_factors_are_those_of_the_paper_above_the_median():
    weights = torch.tensor([1.0, 4.0, 1.0, 1.0, 0.25])
    found = observer(rows(PEAKS).view(5, 10, 5), alpha=0.75).factors(weights)
    expected = [max(peak, 1.0) ** 0.75 / weight**0.25 for peak, weight in zip(PEAKS, weights.tolist(), strict=True)]
    mean = torch.tensor(expected).log().mean().exp()
    torch.testing.assert_close(found, torch.tensor(expected) / mean)


def test_range_is_that_of_all_channels_and_shrinks_when_divided():
    made = observer(rows(PEAKS), rows([1.0, 1.0, 9.0, 1.0, 1.0]))
    assert [float(bound) for bound in made._range()] == [-9, 9]
    divided = made.divided(torch.tensor([4.0, 1.0, 9.0, 1.0, 1.0]))
    assert [float(bound) for bound in divided._range()] == [-2, 2]
    assert float(divided.qparams().scale) == pytest.approx(4 / 255)
    assert [float(bound) for bound in made._range()] == [-9, 9], "the observer itself stays"
    torch.testing.assert_close(divided.mean(), made.mean() / torch.tensor([4.0, 1.0, 9.0, 1.0, 1.0]))


@pytest.mark.parametrize(
    ("peaks", "options", "moves"),
    [
        (PEAKS, {}, True),
        (PEAKS, {"threshold": 9}, False),
        ([3.0, 1.0, 1.0], {}, False),
        ([3.0, 1.0, 1.0], {"threshold": 2.5}, True),
        ([9.0, 0.0, 0.0], {}, False),
        ([0.0, 0.0, 0.0], {}, False),
    ],
)
def test_only_what_stands_out_moves(peaks, options, moves):
    found = observer(rows(peaks), **options).factors(torch.ones(len(peaks)))
    assert (found is not None) == moves


def test_weights_of_zero_leave_finite_factors():
    found = observer(rows(PEAKS)).factors(torch.zeros(5))
    assert found is not None
    assert bool(found.isfinite().all())


def test_merged_observers_saw_both():
    parts = [rows(PEAKS, seed).roll(seed, 1) for seed in range(3)]
    left, right = observer(*parts[:2]), observer(parts[2])
    left.merge(right)
    whole = observer(*parts)
    assert torch.equal(left.low, whole.low)
    assert torch.equal(left.high, whole.high)
    torch.testing.assert_close(left.mean(), torch.cat(parts).mean(0))
    torch.testing.assert_close(whole.mean(), left.mean())


def test_bad_input():
    with pytest.raises(CalibrationError, match="3 channels along the last axis, where earlier batches had 5"):
        observer(rows(PEAKS), rows([1.0, 1.0, 1.0]))
    with pytest.raises(ConfigError, match=r"alpha = 1.5: expected a number from 0 to 1"):
        observer(alpha=1.5)
    with pytest.raises(ConfigError, match="keeps per-tensor ranges"):
        observers.create(QuantSpec(granularity="per-channel", axis=0, observer="smooth"))
