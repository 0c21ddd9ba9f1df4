"""Entropy: the range that loses the least information, by the Kullback-Leibler divergence.

Source: Migacz 2017, "8-bit Inference with TensorRT" (GTC), which searches a threshold for |x|. Here the candidates are
QParams, so that affine ranges fit too. For one candidate, a cell is the set of bins whose centres round to one integer
without saturating. P is the counts of the bins in the cells, with all counts outside added to the first and the last
of these bins; Q gives every cell its own counts, spread evenly over those of its bins where P is not zero. Then

    KL(P‖Q) = Σ_b P_b·ln(P_b/N) − Σ_c P(c)·ln(m_c/(e_c·M)),    divided by N,

with N the sum of P, m_c the counts of a cell, M their sum, e_c its non-empty bins and P(c) the sum of P over it. All of
these are differences of running sums, so a candidate costs one look-up per cell. An outer cell that holds nothing but
what was clipped gets m_c = 1, which keeps the divergence finite. A range with steps finer than a bin would fit any
histogram and is no candidate.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from fxquant.observers.clipping import search
from fxquant.observers.histogram import Histogram
from fxquant.spec import QParams, QuantSpec


class Sums(NamedTuple):
    """Counts (rows, bins) and running sums (rows, bins + 1) of the counts, the non-empty bins, and count·ln count."""

    counts: Tensor
    mass: Tensor
    filled: Tensor
    information: Tensor


def running_sums(histogram: Histogram) -> Sums:
    """Return what `divergence` looks up, in float64."""
    counts = histogram.counts.double()
    summed = (counts, (counts > 0).double(), torch.xlogy(counts, counts))
    return Sums(counts, *(pad(value.cumsum(1), (1, 0)) for value in summed))


def entropy_range(histogram: Histogram, spec: QuantSpec) -> tuple[Tensor, Tensor]:
    """Return the (low, high), each (rows,), of least divergence; the whole range where no candidate serves."""
    sums = running_sums(histogram)
    return search(histogram, spec, lambda qparams: divergence(sums, histogram.width, qparams, spec))


def divergence(sums: Sums, width: Tensor, qparams: QParams, spec: QuantSpec) -> Tensor:
    """Return KL(P‖Q) in nats for QParams of shape (rows, candidates); infinity for what is not a candidate."""
    scale = qparams.scale.double() / width.unsqueeze(1)
    starts = _first_bins(scale, qparams.zero_point, sums.counts.shape[1], spec)
    mass, filled = _at(sums.mass, starts).diff(dim=2), _at(sums.filled, starts).diff(dim=2)
    own = _at(sums.information, starts[..., -1]) - _at(sums.information, starts[..., 0])
    below, above = _at(sums.mass, starts[..., 0]), sums.mass[:, -1:] - _at(sums.mass, starts[..., -1])
    reference = mass.clone()
    for cell, edge, clipped in ((0, starts[..., 0], below), (-1, starts[..., -1] - 1, above)):
        at_edge = _at(sums.counts, edge.clamp(0, sums.counts.shape[1] - 1))
        own = own + torch.xlogy(at_edge + clipped, at_edge + clipped) - torch.xlogy(at_edge, at_edge)
        reference[..., cell] += clipped
        filled[..., cell] += (at_edge == 0) & (clipped > 0)
        mass[..., cell] += (mass[..., cell] == 0) & (clipped > 0)
    total, kept = sums.mass[:, -1:], mass.sum(2)
    cost = (own - torch.xlogy(reference, mass / filled.clamp(min=1.0)).sum(2)) / total - total.log() + kept.log()
    return torch.where(scale < 1, torch.inf, cost)


def _first_bins(scale: Tensor, zero_point: Tensor, bins: int, spec: QuantSpec) -> Tensor:
    """Return (rows, candidates, cells + 1): the first bin of each cell, and the first after the last cell."""
    steps = torch.arange(spec.qmin, spec.qmax + 2, device=scale.device) - 0.5
    edges = scale.unsqueeze(2) * (steps - zero_point.unsqueeze(2))
    return (edges + (bins // 2 - 0.5)).ceil().clamp(0, bins).to(torch.int64)


def _at(table: Tensor, index: Tensor) -> Tensor:
    """Return each row of `table` (rows, n) at that row's indices (rows, …)."""
    return table.gather(1, index.flatten(1)).view(index.shape)
