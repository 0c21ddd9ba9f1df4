"""Decomposed activations to `gelu` and `silu`.

    GELU, exact     y = x·½·(1 + erf(x/√2))
    GELU, by tanh   y = x·½·(1 + tanh(√(2/π)·(x + 0.044715·x³)))         (Hendrycks and Gimpel 2016)
    SiLU            y = x·sigmoid(x)

QuickGELU, x·sigmoid(1.702·x), is another function and stays as it is.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar

import torch
from torch import fx

from fxquant.graph.pattern import Match
from fxquant.passes.canonical_facts import dtype_of, same_type
from fxquant.passes.canonical_forms import Call, forms, recompose

aten = torch.ops.aten
Part = Callable[..., Any]

ROOT = math.sqrt(2 / math.pi)
CUBIC = 0.044715


@dataclass(frozen=True)
class RecomposeActivations:
    """Rewrite decomposed GELU and SiLU.

    Within 4 units in the last place of max(1, |x|): where 1 + tanh cancels, both forms lose the small digits.
    """

    name: ClassVar[str] = "recompose_activations"
    after: ClassVar[tuple[str, ...]] = ("normalize_arguments", "unify_spelling", "remove_noops", "merge_duplicates")

    def apply(self, gm: fx.GraphModule) -> int:
        return recompose(gm, ACTIVATIONS)


def _half_first(x: Any, curve: Any) -> Any:
    return aten.mul.Tensor(aten.mul.Tensor(x, 0.5), aten.add.Tensor(curve, 1.0))


def _half_of_curve(x: Any, curve: Any) -> Any:
    return aten.mul.Tensor(x, aten.mul.Tensor(aten.add.Tensor(curve, 1.0), 0.5))


def _cube(x: Any) -> Any:
    """NewGELU, in GPT-2 and T5 v1.1: √(2/π)·(x + 0.044715·x³)."""
    cubic = aten.mul.Tensor(aten.pow.Tensor_Scalar(x, 3.0), CUBIC)
    return aten.tanh.default(aten.mul.Tensor(aten.add.Tensor(x, cubic), ROOT))


def _horner(x: Any) -> Any:
    """BLOOM's and the "fast" form: (√(2/π)·x)·(1 + (0.044715·x)·x)."""
    inner = aten.add.Tensor(aten.mul.Tensor(aten.mul.Tensor(x, CUBIC), x), 1.0)
    return aten.tanh.default(aten.mul.Tensor(aten.mul.Tensor(x, ROOT), inner))


def _erf_divided(x: Any) -> Any:
    return aten.erf.default(aten.div.Tensor(x, math.sqrt(2)))


def _erf_multiplied(x: Any) -> Any:
    return aten.erf.default(aten.mul.Tensor(x, math.sqrt(0.5)))


def _gelu(halved: Part, curve: Part) -> Part:
    def gelu(x: Any) -> Any:
        return halved(x, curve(x))

    return gelu


def _silu(x: Any) -> Any:
    return aten.mul.Tensor(x, aten.sigmoid.default(x))


def _as(target: Any, approximate: str | None = None) -> Callable[[Match], Call | None]:
    def whole(match: Match) -> Call | None:
        x, dtype = match.values["x"], dtype_of(match.anchor)
        floating = dtype in (torch.float32, torch.float64) and same_type(x, match.anchor)
        return (target, (x,), {} if approximate is None else {"approximate": approximate}) if floating else None

    return whole


HALVES: tuple[Part, ...] = (_half_first, _half_of_curve)
BY_TANH = [_gelu(*parts) for parts in product(HALVES, (_cube, _horner))]
BY_ERF = [_gelu(*parts) for parts in product(HALVES, (_erf_divided, _erf_multiplied))]
ACTIVATIONS = (
    *forms(BY_TANH, _as(aten.gelu.default, "tanh")),
    *forms(BY_ERF, _as(aten.gelu.default, "none")),
    *forms([_silu], _as(aten.silu.default)),
)
