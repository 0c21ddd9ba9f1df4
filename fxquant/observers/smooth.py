"""Smooth: the range of each channel of an activation, from which its outliers are moved to the weights that it meets.

Where a few channels of an activation are far larger than the others, one scale for all of them leaves the others few
steps. x·Wᵀ = (x/s)·(W·s)ᵀ for any s > 0, one for each channel j; weights have room for s, as they have a scale for each
row. With m_j the largest |x| and w_j the largest |W| of a channel

    s_j = max(m_j, median m)^α / w_j^(1 − α)

Source: Xiao et al. 2023, "SmoothQuant", equation 4. The median is our own: that a channel was small in the batches of
calibration is no promise that it stays so, and one that was widened to fill all steps would be cut off then.

The mean is what `convert` corrects biases by (passes/correct_biases.py).
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from fxquant.observers.base import OBSERVERS, Observation, ObservationError, Observer
from fxquant.observers.options import Option, is_number
from fxquant.spec import QuantSpec

# Weights below this share of the largest are taken as so large: a column of zeros has any scale.
LEAST_WEIGHT = 1e-5


@OBSERVERS.register("smooth")
class Smooth(Observer):
    """The extremes and means of channels, which lie along the last axis; the range is that of all channels together.

    Options: `alpha` is the share of an outlier that moves to the weights, `threshold` how many times as large as the
    median channel the largest has to be for anything to move.

    State: `low`, `high`, the sum `total` (channels,), and `rows` () int64, which were summed. `convert` divides the
    activation by `factors` in front of linears; where none may be moved, as in front of other ops, this is `minmax`.
    """

    GRANULARITIES: ClassVar[tuple[str, ...]] = ("per-tensor",)
    OPTIONS: ClassVar[Mapping[str, Option]] = {
        "alpha": Option(0.8, lambda a: is_number(a) and 0 <= a <= 1, "a number from 0 to 1"),
        "threshold": Option(4.0, lambda t: is_number(t) and t >= 1, "a number of at least 1"),
    }

    total: Tensor
    rows: Tensor

    def __init__(self, spec: QuantSpec) -> None:
        super().__init__(spec)
        self.register_buffer("total", torch.empty(0, dtype=torch.float64))
        self.register_buffer("rows", torch.zeros((), dtype=torch.int64))

    def _observe(self, seen: Observation) -> None:
        rows = seen.x.float().reshape(-1, seen.x.shape[-1] if seen.x.ndim else 1)
        low, high = rows.amin(0), rows.amax(0)
        if self.observed:
            if low.shape != self.low.shape:
                raise ObservationError(
                    f"{len(low)} channels along the last axis, where earlier batches had {len(self.low)}", self
                )
            low, high = torch.minimum(self.low, low), torch.maximum(self.high, high)
        total = rows.sum(0, dtype=torch.float64)
        self.low, self.high, self.total = low, high, self.total + total if self.observed else total
        self.rows += len(rows)

    def _combine(self, other: "Smooth") -> None:
        self.low, self.high = torch.minimum(self.low, other.low), torch.maximum(self.high, other.high)
        self.total = self.total + other.total
        self.rows += other.rows

    def _range(self) -> tuple[Tensor, Tensor]:
        return self.low.amin(), self.high.amax()

    def mean(self) -> Tensor:
        """Return the mean of each channel, (channels,)."""
        return (self.total / self.rows).float()

    def factors(self, weight_peaks: Tensor) -> Tensor | None:
        """Return s (channels,), its geometric mean 1; None where no channel stands out, or nothing was seen.

        Args:
            weight_peaks: the largest magnitude of the weights that each channel meets, (channels,).
        """
        peaks = torch.maximum(self.low.abs(), self.high.abs())
        alive = peaks[peaks > 0]
        if not len(alive) or peaks.max() < self.options["threshold"] * alive.median():
            return None
        alpha = float(self.options["alpha"])
        weights = weight_peaks.float().clamp(min=max(float(weight_peaks.max()) * LEAST_WEIGHT, LEAST_WEIGHT**2))
        logs = alpha * peaks.clamp(min=float(alive.median())).log() - (1 - alpha) * weights.log()
        factors: Tensor = (logs - logs.mean()).exp()
        return factors

    @torch.no_grad()
    def divided(self, factors: Tensor) -> "Smooth":
        """Return an observer of the same spec that saw x/factors."""
        other = type(self)(self.spec)
        other.low, other.high, other.total = (each / factors for each in (self.low, self.high, self.total))
        other.batches, other.rows = self.batches, self.rows
        return other
