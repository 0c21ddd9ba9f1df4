"""Percentile: the smallest range, in whole bins, that keeps at least p percent of the values.

Symmetric: of |x|. Affine: at most (100 − p)/2 percent are cut at each end. Source of the method: Wu et al. 2020,
"Integer Quantization for Deep Learning Inference: Principles and Empirical Evaluation", section 5.1.
"""

import torch
from torch import Tensor

from fxquant.observers.histogram import Histogram, magnitudes
from fxquant.spec import QuantSpec


def percentile_range(histogram: Histogram, spec: QuantSpec, percentile: float) -> tuple[Tensor, Tensor]:
    """Return the (low, high), float64 (rows,), that keep `percentile` percent, within the exact extremes."""
    low, high = histogram.low.double(), histogram.high.double()
    cut = (100.0 - percentile) / 100.0
    if spec.symmetric:
        kept = _bins_kept(magnitudes(histogram.counts), cut)
        bound = torch.minimum(kept * histogram.width, torch.maximum(-low, high))
        return -bound, bound
    half = histogram.counts.shape[1] // 2
    top = _bins_kept(histogram.counts, cut / 2) - half
    bottom = _bins_kept(histogram.counts.flip(1), cut / 2) - half
    # A range always holds zero, so an end that would lie beyond it stays there.
    return (
        torch.maximum(-bottom.clamp(min=0) * histogram.width, low),
        torch.minimum(top.clamp(min=0) * histogram.width, high),
    )


def _bins_kept(counts: Tensor, cut: float) -> Tensor:
    """Return how many bins from the left (rows,) leave at most the share `cut` of the counts beyond them."""
    beyond = counts.flip(1).cumsum(1)
    # 100 − 99.9 is not quite a tenth: a whole number of values may come out just below itself.
    allowed = cut * (1 + 1e-9) * beyond[:, -1:].double()
    return counts.shape[1] - (beyond <= allowed).sum(1)
