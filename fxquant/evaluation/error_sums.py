"""Signal, noise and cosine of a tensor that comes in batches, in memory independent of their number."""

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass
class ErrorSums:
    """Running sums over the values of one tensor, in float64; `values` counts them."""

    signal: float = 0.0
    noise: float = 0.0
    product: float = 0.0
    power: float = 0.0
    values: int = 0

    def add(self, reference: Tensor, candidate: Tensor) -> None:
        """Take in one batch's values; the same infinity in both, as in a mask, is neither signal nor noise."""
        r, c = reference.double(), candidate.double()
        same = (r == c) & r.isinf()
        if same.any():
            r, c = r.masked_fill(same, 0.0), c.masked_fill(same, 0.0)
        self.signal += float(r.square().sum())
        self.noise += float((r - c).square().sum())
        self.product += float((r * c).sum())
        self.power += float(c.square().sum())
        self.values += r.numel()

    @property
    def sqnr(self) -> float:
        """10·log10(Σ reference² / Σ (reference − candidate)²) in dB."""
        if self.noise == 0:
            return math.inf
        ratio = self.signal / self.noise
        return 10 * math.log10(ratio) if ratio > 0 else (math.nan if math.isnan(ratio) else -math.inf)

    @property
    def cosine(self) -> float:
        """Cosine of the two as vectors; 1 where they are equal, 0 where one of them alone is zero."""
        if self.noise == 0:
            return 1.0
        norm = math.sqrt(self.signal) * math.sqrt(self.power)
        return self.product / norm if norm else 0.0
