"""How far outputs are from those of a reference, in the units that people compare them in."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxquant.errors import DataError
from fxquant.evaluation.error_sums import ErrorSums


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The worst of all outputs: largest absolute difference, the same in output steps and as a share of the largest
    value; SQNR in dB, inf where all are equal; cosine.
    """

    largest: float
    steps: float
    relative: float
    sqnr: float
    cosine: float


def difference(reference: Sequence[Any], found: Sequence[Any], steps: Sequence[float]) -> Difference:
    """Return how far the floating-point tensors in `found` are from `reference`, worst of all.

    Args:
        reference: outputs of a graph.
        found: outputs of another, in the same order.
        steps: an output step for each (rounding.py), not zero for a tensor of floats.

    Raises:
        DataError: other outputs, or other shapes.
    """
    if len(reference) != len(found):
        raise DataError(f"it gave {len(found)} outputs; expected {len(reference)}")
    each = [
        _one(place, left, right, step)
        for place, (left, right, step) in enumerate(zip(reference, found, steps, strict=True))
        if isinstance(left, Tensor) and left.is_floating_point()
    ]
    return Difference(
        largest=max((d.largest for d in each), default=0.0),
        steps=max((d.steps for d in each), default=0.0),
        relative=max((d.relative for d in each), default=0.0),
        sqnr=min((d.sqnr for d in each), default=math.inf),
        cosine=min((d.cosine for d in each), default=1.0),
    )


def _one(place: int, left: Tensor, right: Any, step: float) -> Difference:
    if not isinstance(right, Tensor) or right.shape != left.shape:
        shape = tuple(right.shape) if isinstance(right, Tensor) else type(right).__name__
        raise DataError(f"output {place} is {shape}; expected {tuple(left.shape)}")
    sums = ErrorSums()
    sums.add(left, right)
    apart = (left.double() - right.double()).abs()
    apart = torch.where(left == right, 0.0, apart)  # equal infinities, of masks
    largest = float(apart.nan_to_num(math.inf).max()) if apart.numel() else 0.0
    scale = float(left.double().abs().nan_to_num(0.0, 0.0, 0.0).max()) if left.numel() else 0.0
    return Difference(
        largest=largest,
        steps=_ratio(largest, step),
        relative=_ratio(largest, scale),
        sqnr=-math.inf if math.isnan(sums.sqnr) else sums.sqnr,
        cosine=0.0 if math.isnan(sums.cosine) else sums.cosine,
    )


def _ratio(value: float, unit: float) -> float:
    """Return value/unit; of nothing nothing is left, and of something in units of nothing infinitely many are."""
    return value / unit if unit else (math.inf if value else 0.0)
