"""Take from the biases of linears what rounding their weights adds to the results on average.

Source: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2, with
the mean that calibration saw in place of one that is derived.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import fx

from fxquant.graph import edit
from fxquant.numerics import dequantize
from fxquant.passes.claims import ClaimedSite, claimed_sites
from fxquant.passes.convert import WeightTable, integers_of
from fxquant.passes.smooth_activations import seen_by

LINEAR = torch.ops.aten.linear.default


@dataclass(frozen=True)
class CorrectBiases:
    """linear(x, W, b) → linear(x, W, b − (Ŵ − W)·E[x]), where Ŵ is W as it will be rounded and E[x] was seen.

    It is done where a `smooth` observer saw x, whose state has the mean of each channel, and the linear has a bias.
    `weights` is the table of `Convert`, which rounds each tensor once.
    """

    weights: WeightTable = field(default_factory=dict)
    name: ClassVar[str] = "correct_biases"
    after: ClassVar[tuple[str, ...]] = ("smooth_activations",)

    def apply(self, gm: fx.GraphModule) -> int:
        """Return how many biases were corrected."""
        return sum(self._correct(gm, site) for site in list(claimed_sites(gm)))

    def _correct(self, gm: fx.GraphModule, site: ClaimedSite) -> bool:
        xs, weights, spec = site.edges.get("x", ()), site.edges.get("weight", ()), site.claim.specs.get("weight")
        if len(xs) != 1 or len(weights) != 1 or spec is None or weights[0].user.target is not LINEAR:
            return False
        weight, linear = weights[0].source, weights[0].user
        observer, bias = seen_by(gm, xs[0].source), linear.args[2]
        if observer is None or not isinstance(bias, fx.Node) or not all(map(edit.is_constant, (weight, bias))):
            return False
        integers, qparams = integers_of(gm, weight, spec, self.weights)
        error = dequantize(integers, qparams) - edit.get_tensor(gm, weight).float()
        before = edit.get_tensor(gm, bias)
        after = (before.float() - error @ observer.mean()).to(before.dtype)
        edit.set_argument(linear, 2, edit.add_constant(gm, f"{bias.target}_corrected", after, linear))
        return True
