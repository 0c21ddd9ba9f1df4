"""Moving-average min-max: recent batches weigh more, so that one outlier does not set the range for good."""

from collections.abc import Mapping
from typing import ClassVar

from fxquant.observers.base import OBSERVERS, Observation, Observer
from fxquant.observers.options import Option, is_number


@OBSERVERS.register("moving_average")
class MovingAverage(Observer):
    """Exponential moving averages of the batches' minima and maxima.

    With c the option `averaging_constant`, low ← (1 − c)·low + c·min(x), and likewise high; the first batch sets both.
    Source: Jacob et al. 2018, section 3.1, with the constant as torch.ao.quantization states it. Merging weighs each
    side by its number of batches: commutative, and associative up to rounding.
    """

    OPTIONS: ClassVar[Mapping[str, Option]] = {
        "averaging_constant": Option(0.01, lambda c: is_number(c) and 0 < c <= 1, "a number above 0, at most 1")
    }

    def _observe(self, seen: Observation) -> None:
        if self.observed:
            c = self.options["averaging_constant"]
            self.low, self.high = (1 - c) * self.low + c * seen.low, (1 - c) * self.high + c * seen.high
        else:
            self.low, self.high = seen.low, seen.high

    def _combine(self, other: "MovingAverage") -> None:
        share = (other.batches / (self.batches + other.batches)).to(self.low.dtype)
        self.low = (1 - share) * self.low + share * other.low
        self.high = (1 - share) * self.high + share * other.high
