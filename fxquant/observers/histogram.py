"""Histograms that grow without loss: counts on a grid aligned at zero whose bin width is a power of two.

For `bins` = 2h and a width w = 2^k, bin h + j holds j·w ≤ x < (j+1)·w, and bin h − 1 − j holds its mirror image
−(j+1)·w < x ≤ −j·w (j = 0 … h−1; zero itself is in bin h). Doubling w merges the pairs j = 2i and 2i + 1 on each side,
so the counts at one width are an exact function of those at any smaller one, and k is the least integer for which
max|x| < h·w. Hence the counts of some data do not depend on the order or the parts in which they came.

Each row (channel) has its own width; every function is vectorised over rows.
"""

from typing import NamedTuple

import torch
from torch import Tensor

# Values below 2^-120·bins/2 share the finest grid, so that its reciprocal stays a normal float32.
SMALLEST_EXPONENT = -120
# Values turned into bin numbers at once: small enough for the cache.
CHUNK = 1 << 18


class Histogram(NamedTuple):
    """The counts of each row with what a choice of range needs to know of them.

    Shapes: `counts` (rows, bins) int64 as laid out above; `width` (rows,) float64; `low` and `high` (rows,) float32,
    the exact minimum (at most 0) and maximum (at least 0) of the row.
    """

    counts: Tensor
    width: Tensor
    low: Tensor
    high: Tensor


def exponent_for(bound: Tensor, bins: int) -> Tensor:
    """Return the least k (int32) with bound < bins/2·2^k, at least `SMALLEST_EXPONENT`, for float32 bounds ≥ 0."""
    exponent = torch.frexp(bound).exponent - (bins.bit_length() - 2)
    return torch.where(bound > 0, exponent.clamp(min=SMALLEST_EXPONENT), SMALLEST_EXPONENT).to(torch.int32)


def power_of_two(exponent: Tensor) -> Tensor:
    """Return 2^exponent as float32, exactly, for int32 exponents from −126 to 127."""
    return ((exponent + 127) << 23).view(torch.float32)


def count(rows: Tensor, exponent: Tensor, bins: int) -> Tensor:
    """Return the counts (rows, bins) of values (rows, n) on the grids of width 2^exponent (rows,) that hold them."""
    height = rows.shape[0]
    counts = torch.zeros(height * bins, dtype=torch.int64, device=rows.device)
    scale = power_of_two(-exponent).unsqueeze(1)
    offset = torch.arange(height, dtype=torch.int32, device=rows.device).unsqueeze(1) * bins + bins // 2
    # A chunk costs a count of all bins, so it holds at least as many values as there are bins.
    for part in torch.split(rows, max(CHUNK // height, bins), dim=1):
        values = part.float()
        # Conversion to an integer truncates towards zero, which underflow of the product does not change.
        index = (values * scale).to(torch.int32).add_(values < 0, alpha=-1).add_(offset)
        counts += torch.bincount(index.flatten(), minlength=height * bins)
    return counts.view(height, bins)


def widen(counts: Tensor, doublings: Tensor) -> Tensor:
    """Return the counts (rows, bins) after each row's width has been doubled `doublings` (rows,) times."""
    if not bool(doublings.any()):
        return counts
    half = counts.shape[1] // 2
    place = torch.arange(-half, half, device=counts.device).unsqueeze(0)
    # An arithmetic shift rounds −1 − j down to −1 − (j >> s): the mirror image of j >> s.
    target = (place >> doublings.clamp(max=62).to(torch.int64).unsqueeze(1)) + half
    return torch.zeros_like(counts).scatter_add_(1, target, counts)


def magnitudes(counts: Tensor) -> Tensor:
    """Return the counts (rows, bins/2) of |x|: bin j holds j·w ≤ |x| < (j+1)·w."""
    half = counts.shape[1] // 2
    return counts[:, half:] + counts[:, :half].flip(1)
