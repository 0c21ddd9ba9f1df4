"""Histogram: keep the distribution of the values, then choose the range by mean square error, entropy or percentile."""

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor

from fxquant.errors import ConfigError
from fxquant.numerics import as_rows
from fxquant.observers.base import OBSERVERS, Observation, Observer
from fxquant.observers.entropy import entropy_range
from fxquant.observers.histogram import Histogram, count, exponent_for, power_of_two, widen
from fxquant.observers.mse import mse_range
from fxquant.observers.options import Option, is_number
from fxquant.observers.percentile import percentile_range
from fxquant.spec import QuantSpec

# Rows whose ranges are searched at once: half a megabyte a row and intermediate, which should stay in the cache.
ROWS_AT_ONCE = 2


def _is_bins(value: object) -> bool:
    return is_number(value) and value in {2**power for power in range(9, 17)}


@OBSERVERS.register("histogram")
class HistogramObserver(Observer):
    """A histogram of all values seen and a choice of range over it.

    Options: `method` is "mse" (least expected squared error; the default), "entropy" (least KL divergence) or
    "percentile" (keep `percentile` percent of the values, 99.99 by default). `bins` is a power of two, 4096 by default:
    the memory is 8·bins bytes a channel, whatever the number of batches.

    State: `counts` (rows, bins) int64 on grids of width 2^`exponent` (rows,) int32, one row per channel, else one row;
    merging in any order gives the same counts exactly.

    Raises:
        ConfigError: a per-token spec, a format of more than 8 bits, or a `percentile` beside another method.
    """

    OPTIONS: ClassVar[Mapping[str, Option]] = {
        "method": Option("mse", lambda m: m in ("mse", "entropy", "percentile"), "'mse', 'entropy' or 'percentile'"),
        "percentile": Option(99.99, lambda p: is_number(p) and 0 < p <= 100, "a number above 0, at most 100"),
        "bins": Option(4096, _is_bins, "a power of two from 512 to 65536"),
    }

    counts: Tensor
    exponent: Tensor

    def __init__(self, spec: QuantSpec) -> None:
        super().__init__(spec)
        if spec.qmax - spec.qmin > 255:
            raise ConfigError(f"observer 'histogram' serves integers of up to 8 bits, not {spec.dtype}: use 'minmax'")
        if self.options["method"] != "percentile" and any(name == "percentile" for name, _ in spec.options):
            raise ConfigError("observer 'histogram': percentile has a meaning beside method = 'percentile' only")
        self.register_buffer("counts", torch.zeros(0, self.options["bins"], dtype=torch.int64))
        self.register_buffer("exponent", torch.zeros(0, dtype=torch.int32))

    def _observe(self, seen: Observation) -> None:
        bins = self.options["bins"]
        exponent = exponent_for(torch.maximum(-seen.low, seen.high).clamp(min=0.0).reshape(-1), bins)
        if self.observed:
            exponent = torch.maximum(exponent, self.exponent)
            counts = count(as_rows(seen.x, self.spec.axis), exponent, bins)
            self._take(counts, exponent, seen.low, seen.high)
        else:
            self.counts = count(as_rows(seen.x, self.spec.axis), exponent, bins)
            self.exponent, self.low, self.high = exponent, seen.low, seen.high

    def _combine(self, other: "HistogramObserver") -> None:
        exponent = torch.maximum(self.exponent, other.exponent)
        self._take(widen(other.counts, exponent - other.exponent), exponent, other.low, other.high)

    def _take(self, counts: Tensor, exponent: Tensor, low: Tensor, high: Tensor) -> None:
        """Add counts on grids of `exponent`, none of which is finer than the one held."""
        self.counts = widen(self.counts, exponent - self.exponent) + counts
        self.exponent = exponent
        self.low, self.high = torch.minimum(self.low, low), torch.maximum(self.high, high)

    def histogram(self) -> Histogram:
        """Return what was seen as data."""
        low, high = self.low.reshape(-1).clamp(max=0.0), self.high.reshape(-1).clamp(min=0.0)
        return Histogram(self.counts, power_of_two(self.exponent).double(), low, high)

    def _range(self) -> tuple[Tensor, Tensor]:
        whole = self.histogram()
        parts = zip(*(torch.split(field, ROWS_AT_ONCE) for field in whole), strict=True)
        found = [self._choose(Histogram(*part)) for part in parts]
        low, high = (torch.cat(bounds).float() for bounds in zip(*found, strict=True))
        return low.reshape(self.low.shape), high.reshape(self.high.shape)

    def _choose(self, part: Histogram) -> tuple[Tensor, Tensor]:
        if self.options["method"] == "percentile":
            return percentile_range(part, self.spec, float(self.options["percentile"]))
        search: Callable[[Histogram, QuantSpec], tuple[Tensor, Tensor]] = {
            "mse": mse_range,
            "entropy": entropy_range,
        }[self.options["method"]]
        return search(part, self.spec)
