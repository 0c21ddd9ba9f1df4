"""Search of clipping ranges: candidates [low·2^a, high·2^b] with a, b ≤ 0, from coarse to fine, least cost first."""

from collections.abc import Callable

import torch
from torch import Tensor

from fxquant.numerics import qparams_from_range
from fxquant.observers.histogram import Histogram
from fxquant.spec import QParams, QuantSpec

# Clipping below 2^-7.5 of the extreme would need finer bins than a histogram has.
DEEPEST = -7.5
# Steps in octaves of the finer rounds; the last leaves a range known to 2^(1/128), or half a percent.
STEPS = (1 / 8, 1 / 32, 1 / 128)

Cost = Callable[[QParams], Tensor]


def search(histogram: Histogram, spec: QuantSpec, cost: Cost) -> tuple[Tensor, Tensor]:
    """Return the (low, high), float32 (rows,), whose QParams cost least, never more than the whole range costs.

    `cost` maps QParams of shape (rows, candidates) to a cost of that shape; infinity rules a candidate out. A symmetric
    spec has one bound to search, an affine one two.
    """
    best = torch.zeros(len(histogram.low), 1, 2, device=histogram.low.device)
    for offsets in (_coarse(spec), *(_fine(spec, step) for step in STEPS)):
        octaves = (best + offsets.to(best.device)).clamp(max=0.0)
        low, high = _bounds(histogram, spec, octaves)
        # The first of equals wins: the incumbent, which is the whole range at first.
        winner = cost(qparams_from_range(low, high, spec)).argmin(dim=1)
        best = octaves.gather(1, winner.view(-1, 1, 1).expand(-1, 1, 2))
    low, high = _bounds(histogram, spec, best)
    return low.squeeze(1), high.squeeze(1)


def _bounds(histogram: Histogram, spec: QuantSpec, octaves: Tensor) -> tuple[Tensor, Tensor]:
    low, high = histogram.low.unsqueeze(1), histogram.high.unsqueeze(1)
    if spec.symmetric:
        high = torch.maximum(-low, high)
        low = -high
    factors = torch.exp2(octaves)
    return low * factors[..., 0], high * factors[..., 1]


def _coarse(spec: QuantSpec) -> Tensor:
    return _pairs(spec, torch.arange(0.0, DEEPEST - 0.01, -0.125 if spec.symmetric else -0.5))


def _fine(spec: QuantSpec, step: float) -> Tensor:
    return _pairs(spec, torch.tensor([0.0, 1.0, -1.0, 2.0, -2.0, 3.0, -3.0, 4.0, -4.0]) * step)


def _pairs(spec: QuantSpec, octaves: Tensor) -> Tensor:
    """Return (candidates, 2): both bounds alike where the spec is symmetric, else every combination; (0, 0) first."""
    return octaves.unsqueeze(1).expand(-1, 2) if spec.symmetric else torch.cartesian_prod(octaves, octaves)
