import numpy as np
import pytest
import torch

from fxquant import observers
from fxquant.numerics import qparams_from_range
from fxquant.observers.entropy import divergence, entropy_range, running_sums
from fxquant.observers.histogram import Histogram
from fxquant.spec import QuantSpec


def histogram_of(x, bins=4096):
    observer = observers.create(QuantSpec(observer="histogram", options=(("bins", bins),)))
    observer(x)
    return observer.histogram()


def kl(histogram: Histogram, scale: float, zero_point: int, spec: QuantSpec) -> float:
    """Compute KL(P‖Q) of one candidate bin by bin, as the module's docstring defines it."""
    counts = histogram.counts[0].numpy().astype(float)
    step = scale / float(histogram.width)
    if step < 1:
        return np.inf
    centres = np.arange(len(counts)) - len(counts) // 2 + 0.5
    cells = np.floor(centres / step + zero_point + 0.5)
    inside = np.flatnonzero((cells >= spec.qmin) & (cells <= spec.qmax))
    reference = counts[inside].copy()
    below, above = counts[: inside[0]].sum(), counts[inside[-1] + 1 :].sum()
    reference[0] += below
    reference[-1] += above
    candidate = np.zeros_like(reference)
    for cell in range(spec.qmin, spec.qmax + 1):
        members = np.flatnonzero(cells[inside] == cell)
        filled = members[reference[members] > 0]
        if len(filled):
            candidate[filled] = max(counts[inside][members].sum(), 1.0) / len(filled)
    p, q = reference / reference.sum(), candidate / candidate.sum()
    used = p > 0
    return float((p[used] * np.log(p[used] / q[used])).sum())


SAMPLES = {
    "normal": lambda g: torch.randn(20000, generator=g),
    "one-sided": lambda g: torch.randn(20000, generator=g).relu(),
    "outliers": lambda g: torch.cat([torch.randn(20000, generator=g), torch.tensor([60.0, -30.0])]),
    "few": lambda g: torch.tensor([-3.0, 0.1, 0.2, 5.0, 5.0, 7.5]),
}


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("symmetric", [False, True], ids=["affine", "symmetric"])
@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_divergence_is_that_of_the_definition(name, symmetric, dtype):
    spec = QuantSpec(dtype=dtype, symmetric=symmetric)
    histogram = histogram_of(SAMPLES[name](torch.Generator().manual_seed(0)))
    shares = torch.tensor([[1.0, 0.71, 0.43, 0.31, 0.24, 0.17, 0.05]])
    low, high = histogram.low.unsqueeze(1) * shares.clamp(min=0.2), histogram.high.unsqueeze(1) * shares
    qparams = qparams_from_range(low, high, spec)
    found = divergence(running_sums(histogram), histogram.width, qparams, spec)
    for candidate in range(shares.shape[1]):
        wanted = kl(histogram, float(qparams.scale[0, candidate]), int(qparams.zero_point[0, candidate]), spec)
        assert float(found[0, candidate]) == pytest.approx(wanted, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("symmetric", [False, True], ids=["affine", "symmetric"])
def test_chosen_range_is_close_to_the_best_of_a_dense_grid(name, symmetric):
    spec = QuantSpec(symmetric=symmetric)
    histogram = histogram_of(SAMPLES[name](torch.Generator().manual_seed(0)))
    low, high = entropy_range(histogram, spec)
    sums = running_sums(histogram)
    found = qparams_from_range(low.unsqueeze(1), high.unsqueeze(1), spec)
    chosen = float(divergence(sums, histogram.width, found, spec))
    shares = torch.cartesian_prod(torch.logspace(0, -1.2, 50), torch.logspace(0, -1.2, 50))
    grid_low, grid_high = (histogram.low * shares[:, 0]).unsqueeze(0), (histogram.high * shares[:, 1]).unsqueeze(0)
    dense = divergence(sums, histogram.width, qparams_from_range(grid_low, grid_high, spec), spec)
    assert chosen <= float(dense[0, 0])
    assert chosen <= float(dense.min()) * 1.1 + 1e-9


def test_lone_outliers_are_clipped():
    low, high = entropy_range(histogram_of(SAMPLES["outliers"](torch.Generator().manual_seed(0))), QuantSpec())
    assert -10 < float(low) < -3
    assert 3 < float(high) < 10


def test_uniform_data_are_not_clipped():
    low, high = entropy_range(histogram_of(torch.linspace(-1, 1, 100_001)), QuantSpec())
    assert float(low) == pytest.approx(-1, abs=0.02)
    assert float(high) == pytest.approx(1, abs=0.02)


def test_too_few_bins_for_any_candidate_give_the_whole_range():
    histogram = histogram_of(torch.tensor([-0.3, 0.51]), bins=512)
    low, high = entropy_range(histogram, QuantSpec())
    assert [float(low), float(high)] == pytest.approx([-0.3, 0.51])
