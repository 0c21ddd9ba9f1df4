r"""Mean square error: the range with the least expected squared quantization error.

The density p(x) is that of the histogram, uniform within a bin. With v_q = S·(q − Z) for q = qmin … qmax, L the last
of them and b_q = S·(q − Z + 1/2) the boundaries between them, the error is the sum over cells of ∫ (x − v_q)²·p(x) dx.
Summing by parts, with v_{q+1}² − v_q² = 2·S·b_q, turns it into

    E = ∫ (x − L)²·p(x) dx − 2·S·Σ_q G(b_q),    G(b) = ∫_{−∞}^{b} (b − x)·p(x) dx,

where G is quadratic within a bin: a range costs one look-up of G per boundary, clipping included. The criterion is
that of Sung, Shin and Hwang 2015, "Resiliency of Deep Neural Networks under Quantization"; the evaluation is our own.
"""

import torch
from torch import Tensor

from fxquant.observers.clipping import search
from fxquant.observers.histogram import Histogram
from fxquant.spec import QParams, QuantSpec


def mse_range(histogram: Histogram, spec: QuantSpec) -> tuple[Tensor, Tensor]:
    """Return the (low, high), each (rows,), of least expected squared error; never worse than the whole range."""
    return search(histogram, spec, lambda qparams: expected_error(histogram, qparams, spec))


def expected_error(histogram: Histogram, qparams: QParams, spec: QuantSpec) -> Tensor:
    """Return the mean of (x − fake_quantize(x))² over each row for QParams of shape (rows, candidates)."""
    counts, width = histogram.counts.double(), histogram.width.unsqueeze(1)
    half = counts.shape[1] // 2
    # All lengths are in bins from here on, x = width·u, so that extreme magnitudes neither overflow nor vanish.
    scale = qparams.scale.double() / width
    mass, area = _integrals(counts)
    steps = torch.arange(spec.qmin, spec.qmax, device=counts.device) + 0.5
    boundary = scale.unsqueeze(2) * (steps - qparams.zero_point.unsqueeze(2)) + half
    total = _integral_to(boundary.flatten(1), counts, mass, area).view(boundary.shape).sum(2)
    last = scale * (spec.qmax - qparams.zero_point) + half
    error = _around(last, counts) - 2 * scale * total
    return error.clamp(min=0.0) / mass[:, -1:] * width**2


def _integrals(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return M(u) = ∫ p and G(u) at the left edge of every bin and at the end, each (rows, bins + 1)."""
    mass = torch.nn.functional.pad(counts.cumsum(1), (1, 0))
    area = torch.nn.functional.pad((mass[:, :-1] + counts / 2).cumsum(1), (1, 0))
    return mass, area


def _integral_to(place: Tensor, counts: Tensor, mass: Tensor, area: Tensor) -> Tensor:
    """Return G at `place` (rows, n), measured in bins from the left end of the histogram."""
    place = place.clamp(min=0.0)
    index = place.clamp(max=counts.shape[1]).to(torch.int64)
    # Beyond the last bin G grows along a line, as in a bin without counts.
    inside = torch.nn.functional.pad(counts, (0, 1)).gather(1, index)
    rest = place - index
    return area.gather(1, index) + rest * (mass.gather(1, index) + rest * inside / 2)


def _around(centre: Tensor, counts: Tensor) -> Tensor:
    """Return ∫ (u − centre)²·p(u) du for centres (rows, candidates); a bin adds its variance, 1/12."""
    middle = torch.arange(counts.shape[1], device=counts.device, dtype=counts.dtype) + 0.5
    total = counts.sum(1, keepdim=True)
    mean = (counts * middle).sum(1, keepdim=True) / total
    spread = (counts * (middle - mean) ** 2).sum(1, keepdim=True) + total / 12
    return spread + total * (centre - mean) ** 2
