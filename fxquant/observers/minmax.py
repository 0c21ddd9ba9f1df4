"""Min-max: the range that holds every value seen."""

from typing import ClassVar

import torch

from fxquant.observers.base import OBSERVERS, Observation, Observer
from fxquant.spec import AT_RUN_TIME


@OBSERVERS.register("minmax")
class MinMax(Observer):
    """The minimum and maximum over all batches; of tokens and samples those of the latest batch alone."""

    GRANULARITIES: ClassVar[tuple[str, ...]] = ("per-tensor", "per-channel", *AT_RUN_TIME, "per-group")

    def _observe(self, seen: Observation) -> None:
        if self.observed and self.spec.granularity not in AT_RUN_TIME:
            self.low, self.high = torch.minimum(self.low, seen.low), torch.maximum(self.high, seen.high)
        else:
            self.low, self.high = seen.low, seen.high

    def _combine(self, other: "MinMax") -> None:
        self.low, self.high = torch.minimum(self.low, other.low), torch.maximum(self.high, other.high)
