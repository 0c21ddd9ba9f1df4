"""Decomposed normalisations over the last axis to `rms_norm` and `layer_norm`.

    RMSNorm    y = x / √(mean(x²) + eps) · w                       (Zhang and Sennrich 2019; Llama, T5, Gemma)
    LayerNorm  y = (x − mean(x)) / √(var(x) + eps) · w + b         (Ba, Kiros and Hinton 2016; DeBERTa)

where var divides by the number of elements. Casts to the dtype at hand are gone before, so what matches here computes
in one dtype throughout; Gemma's 1 + w is a constant before.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar

import torch
from torch import fx

from fxquant.graph import edit
from fxquant.graph.pattern import Match
from fxquant.passes.canonical_facts import dtype_of, sizes
from fxquant.passes.canonical_forms import Call, forms, recompose

aten = torch.ops.aten
Part = Callable[..., Any]


@dataclass(frozen=True)
class RecomposeNorms:
    """Rewrite decomposed RMSNorm and LayerNorm.

    RMSNorm by rsqrt gives the same bits. The other forms round at most a few times differently: within 4 units in the
    last place of float32 of the largest normalised value of the row.
    """

    name: ClassVar[str] = "recompose_norms"
    after: ClassVar[tuple[str, ...]] = (
        "normalize_arguments",
        "unify_spelling",
        "remove_noops",
        "merge_duplicates",
        "fold_constants",
    )

    def apply(self, gm: fx.GraphModule) -> int:
        # An RMSNorm of x − mean(x) is a part of LayerNorm.
        return recompose(gm, LAYER_NORMS) + recompose(gm, RMS_NORMS)


def _times_rsqrt(x: Any, square: Any) -> Any:
    return aten.mul.Tensor(x, aten.rsqrt.default(square))


def _over_sqrt(x: Any, square: Any) -> Any:
    return aten.div.Tensor(x, aten.sqrt.default(square))


def _square(x: Any) -> Any:
    return aten.pow.Tensor_Scalar(x, 2.0)


def _product(x: Any) -> Any:
    return aten.mul.Tensor(x, x)


def _mean(x: Any) -> Any:
    return aten.mean.dim(x, [-1], True)


def _rms_norm(divided: Part, squared: Part) -> Part:
    def rms_norm(x: Any, weight: Any, *, eps: float) -> Any:
        return aten.mul.Tensor(divided(x, aten.add.Tensor(_mean(squared(x)), eps)), weight)

    return rms_norm


def _centred_by_mean(squared: Part) -> Part:
    def centred(x: Any) -> Any:
        difference = aten.sub.Tensor(x, _mean(x))
        return difference, _mean(squared(difference))

    return centred


def _centred_by_var(x: Any) -> Any:
    return aten.sub.Tensor(x, _mean(x)), aten.var.correction(x, [-1], correction=0.0, keepdim=True)


def _centred_by_var_dim(x: Any) -> Any:
    return aten.sub.Tensor(x, _mean(x)), aten.var.dim(x, [-1], False, True)


def _centred_by_var_mean(x: Any) -> Any:
    both = aten.var_mean.correction(x, [-1], correction=0.0, keepdim=True)
    return aten.sub.Tensor(x, operator.getitem(both, 1)), operator.getitem(both, 0)


def _layer_norm(centred: Part, divided: Part) -> Part:
    def layer_norm(x: Any, weight: Any, bias: Any, *, eps: float) -> Any:
        difference, variance = centred(x)
        scaled = aten.mul.Tensor(divided(difference, aten.add.Tensor(variance, eps)), weight)
        return aten.add.Tensor(scaled, bias)

    return layer_norm


def _is_affine(match: Match, role: str) -> bool:
    """Say whether a role is a constant vector over the last axis of x, of the dtype of x and of the result."""
    x, vector = match.values["x"], match.values[role]
    shape, dtype = sizes(x), dtype_of(x)
    fits = shape is not None and sizes(vector) == shape[-1:] and all(isinstance(size, int) for size in shape[-1:])
    one_dtype = dtype in (torch.float32, torch.float64) and dtype == dtype_of(vector) == dtype_of(match.anchor)
    return edit.is_constant(vector) and fits and one_dtype


def _width(match: Match) -> list[int]:
    shape = sizes(match.values["x"])
    assert shape is not None, "_is_affine holds"
    return [shape[-1]]


def _as_rms_norm(match: Match) -> Call | None:
    if not _is_affine(match, "weight"):
        return None
    args = (match.values["x"], _width(match), match.values["weight"], float(match.attrs["eps"]))
    return aten.rms_norm.default, args, {}


def _as_layer_norm(match: Match) -> Call | None:
    if not (_is_affine(match, "weight") and _is_affine(match, "bias")):
        return None
    x, weight, bias = (match.values[role] for role in ("x", "weight", "bias"))
    return aten.layer_norm.default, (x, _width(match), weight, bias, float(match.attrs["eps"]), False), {}


DIVISIONS: tuple[Part, ...] = (_times_rsqrt, _over_sqrt)
SQUARES: tuple[Part, ...] = (_square, _product)
CENTRINGS: tuple[Part, ...] = (
    *(_centred_by_mean(squared) for squared in SQUARES),
    _centred_by_var,
    _centred_by_var_dim,
    _centred_by_var_mean,
)
RMS_NORMS = forms((_rms_norm(*parts) for parts in product(DIVISIONS, SQUARES)), _as_rms_norm)
LAYER_NORMS = forms((_layer_norm(*parts) for parts in product(CENTRINGS, DIVISIONS)), _as_layer_norm)
