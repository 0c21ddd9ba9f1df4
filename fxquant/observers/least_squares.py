"""Least squares: the scale of each row of a constant by the squared error of the values themselves.

For fixed integers k = q − Z the error Σ (x − S·k)² is least at S = Σ x·k / Σ k², where it is Σ x² − (Σ x·k)² / Σ k². So
a step is tried by rounding with it once, which gives the integers, the scale that suits them best, and the error that
is spared. Steps about that of the whole range are tried, then the best scale itself, with which values may round to
other integers. Quantizing with the scale that was found only lessens its error: rounding is the best for each value.
"""

from typing import ClassVar

import torch
from torch import Tensor

from fxquant.errors import ConfigError
from fxquant.numerics import SMALLEST_SCALE, as_groups, as_rows, qparams_from_range
from fxquant.observers.base import OBSERVERS, Observation, ObservationError, Observer
from fxquant.spec import QParams, QuantSpec

# Step sizes that are tried, as shares of that of the whole range: below one, the largest values are cut off.
STEPS = tuple(part / 20 for part in range(22, 9, -1))
# How often the best scale is rounded with again; a third time changes next to nothing.
ROUNDS = 2
# Values whose scales are searched at once: few enough for the intermediate results to stay in the cache.
VALUES_AT_ONCE = 2**17


@OBSERVERS.register("least_squares")
class LeastSquares(Observer):
    """The scale of least squared error, for constants; the zero point is that of the whole range.

    State: beside the range, `scale` and `zero_point` as in QParams. It is found from one tensor, which is not kept, so
    there is nothing to be averaged over batches or to be merged.

    Raises:
        CalibrationError: a second tensor is observed.
    """

    GRANULARITIES: ClassVar[tuple[str, ...]] = ("per-tensor", "per-channel", "per-group")

    scale: Tensor
    zero_point: Tensor

    def __init__(self, spec: QuantSpec) -> None:
        super().__init__(spec)
        if spec.format.floating:
            raise ConfigError(f"observer 'least_squares' serves integers, not {spec.dtype}: use 'minmax'")
        self.register_buffer("scale", torch.empty(0))
        self.register_buffer("zero_point", torch.empty(0, dtype=torch.int32))

    def _observe(self, seen: Observation) -> None:
        if self.observed:
            raise self._constants_only()
        self.low, self.high = seen.low, seen.high
        size, x = self.spec.group_size, seen.x.float()
        rows = (as_rows(x, self.spec.axis) if size is None else as_groups(x, size).flatten(0, -2)).contiguous()
        found = [fit(part, self.spec) for part in torch.split(rows, max(VALUES_AT_ONCE // rows.shape[1], 1))]
        self.scale, self.zero_point = (torch.cat(parts).view(seen.low.shape) for parts in zip(*found, strict=True))

    def _combine(self, other: "LeastSquares") -> None:
        raise self._constants_only()

    def _constants_only(self) -> ObservationError:
        return ObservationError(
            "observer 'least_squares' fits one constant tensor, such as a weight: for values that change with the "
            "input use 'histogram' with method = 'mse'",
            self,
        )

    @torch.no_grad()
    def qparams(self) -> QParams:
        self.check()
        return QParams(self.scale, self.zero_point, self.spec.axis, self.spec.group_size)


def fit(rows: Tensor, spec: QuantSpec) -> tuple[Tensor, Tensor]:
    """Return the scale and the zero point, each (n,), of rows (n, values) in float32; a row of zeros gets S = 1.

    The squared error of no row exceeds that of its whole range, but for the rounding of float32.
    """
    whole = qparams_from_range(rows.amin(1), rows.amax(1), spec)
    # In units of the whole range's step, extreme magnitudes neither overflow nor vanish when they are squared.
    unit = rows / whole.scale[:, None]
    lowest, highest = ((end - whole.zero_point).float()[:, None] for end in (spec.qmin, spec.qmax))
    best, gained = torch.ones_like(whole.scale), torch.zeros_like(whole.scale)
    for step in (*(torch.full_like(best, share) for share in STEPS), *[None] * ROUNDS):
        scale, gain = _suited(unit, best if step is None else step, lowest, highest)
        better = gain > gained
        best, gained = torch.where(better, scale, best), torch.where(better, gain, gained)
    return (whole.scale * best).clamp_(min=SMALLEST_SCALE), whole.zero_point


def _suited(x: Tensor, step: Tensor, lowest: Tensor, highest: Tensor) -> tuple[Tensor, Tensor]:
    """Return the best scales (n,) for the integers that steps (n,) make of x (n, values), and what they spare."""
    k = (x / step[:, None]).round_()
    torch.minimum(torch.maximum(k, lowest, out=k), highest, out=k)
    product, square = (x * k).sum(1), k.square().sum(1)
    scale = product / square.clamp(min=1.0)  # a sum of squares of integers; 0 only where all are, which gains nothing
    return scale, product * scale
