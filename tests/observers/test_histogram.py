import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fxquant import observers
from fxquant.observers.histogram import SMALLEST_EXPONENT, count, exponent_for, magnitudes, power_of_two, widen
from fxquant.spec import QuantSpec

BINS = 512
SPEC = QuantSpec(observer="histogram", options=(("bins", BINS),))
EDGES = st.builds(
    lambda sign, m, e: sign * math.ldexp(m, e), st.sampled_from([-1, 1]), st.integers(0, 40), st.integers(-130, 120)
)
VALUES = st.one_of(st.floats(width=32, allow_nan=False, allow_infinity=False), st.floats(-3, 3, width=32), EDGES)


def exact(values: list[float]) -> tuple[int, dict[int, int]]:
    """Return the exponent and the filled bins of one row, computed in exact arithmetic from the layout's definition."""
    half, k = BINS // 2, SMALLEST_EXPONENT
    while max(abs(value) for value in values) >= math.ldexp(half, k):
        k += 1
    filled: dict[int, int] = {}
    for value in values:
        step = math.floor(math.ldexp(abs(value), -k))
        place = half - 1 - step if value < 0 else half + step
        filled[place] = filled.get(place, 0) + 1
    return k, filled


def observed(parts):
    observer = observers.create(SPEC)
    for part in parts:
        observer(torch.tensor(part, dtype=torch.float32))
    return observer


def facts(observer):
    return [observer.counts.tolist(), observer.exponent.tolist(), float(observer.low), float(observer.high)]


@settings(deadline=None, max_examples=150)
@given(st.lists(VALUES, min_size=1, max_size=30))
def test_counts_are_exact(values):
    observer = observed([values])
    k, filled = exact(values)
    assert int(observer.exponent) == k
    found = observer.counts[0]
    assert {int(place): int(found[place]) for place in found.nonzero()} == filled


@settings(deadline=None, max_examples=150)
@given(st.lists(st.lists(VALUES, min_size=1, max_size=6), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_any_parts_in_any_order_give_the_same_counts(parts, random):
    whole = facts(observed([[value for part in parts for value in part]]))
    random.shuffle(parts)
    assert facts(observed(parts)) == whole
    pool = [observed([part]) for part in parts]
    while len(pool) > 1:
        left = pool.pop(random.randrange(len(pool)))
        pool[random.randrange(len(pool))].merge(left)
    assert facts(pool[0]) == whole


@pytest.mark.parametrize("magnitude", [1e-45, 1e-38, 2.0**-112, 1.0, 2.0**100, 3.4e38])
def test_extreme_magnitudes_then_larger_ones(magnitude):
    observer = observed([[-magnitude, 0.0, magnitude], [-3e38, 3e38]])
    assert int(observer.counts.sum()) == 5
    # A negative value however small stays on its own side of zero.
    assert int(observer.counts[0, : BINS // 2].sum()) == 2


def test_edges_belong_to_the_bin_farther_from_zero():
    counts = count(
        torch.tensor([[-2.0, -1.0, -0.5, -0.0, 0.0, 0.5, 1.0, 2.0]]), torch.tensor([0], dtype=torch.int32), 8
    )
    assert counts.tolist() == [[0, 1, 1, 1, 3, 1, 1, 0]]


def test_doubling_merges_pairs_on_each_side():
    counts = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 4, 5, 6, 7, 8]])
    assert widen(counts, torch.tensor([1, 0])).tolist() == [[0, 0, 3, 7, 11, 15, 0, 0], counts[1].tolist()]
    assert widen(counts, torch.tensor([240, 2])).tolist() == [[0, 0, 0, 10, 26, 0, 0, 0]] * 2


def test_magnitudes_fold_both_sides():
    assert magnitudes(torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8]])).tolist() == [[9, 9, 9, 9]]


def test_width_is_the_least_that_holds_the_bound():
    bounds = torch.tensor([0.0, 1e-45, 1.0, 1.0001, 0.9999, 3.4e38])
    assert exponent_for(bounds, 8).tolist() == [SMALLEST_EXPONENT, SMALLEST_EXPONENT, -1, -1, -2, 126]


def test_powers_of_two_are_exact():
    exponents = torch.arange(-126, 128, dtype=torch.int32)
    assert power_of_two(exponents).tolist() == [math.ldexp(1.0, k) for k in range(-126, 128)]


def test_large_tensors_are_counted_in_chunks():
    x = torch.randn(3, 300_000, generator=torch.Generator().manual_seed(0))
    observer = observers.create(QuantSpec(granularity="per-channel", observer="histogram"))
    observer(x)
    steps = torch.floor(x[1].double().abs() * 256).long()
    wanted = torch.bincount(torch.where(x[1] < 0, 2047 - steps, 2048 + steps), minlength=4096)
    assert observer.exponent.tolist() == [-8, -8, -8]
    assert observer.counts.sum(1).tolist() == [300_000] * 3
    assert torch.equal(observer.counts[1], wanted)
