"""Prepared graph → Q/DQ reference graph: ranges become scales, weights become integers.

After this pass the numbers are settled: every quantized edge carries `quantize` and `dequantize`, every weight is an
integer constant behind a `dequantize`, and a dynamic edge computes its scale with `choose_qparams`.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, fx

from fxquant import observers
from fxquant.errors import CalibrationError, FxQuantError
from fxquant.graph import edit
from fxquant.graph.pattern import Edge
from fxquant.numerics import choose_qparams, quantize
from fxquant.passes.claims import ClaimedSite, claimed_sites
from fxquant.passes.qdq_nodes import insert_dequantize, insert_dynamic, insert_quantize, store_integers, store_qparams
from fxquant.spec import QParams, QuantSpec

# What a constant became, by its identity and spec; holding the tensor keeps its identity from being used again.
WeightTable = dict[tuple[int, QuantSpec], tuple[Tensor, Tensor, QParams]]


@dataclass(frozen=True)
class Convert:
    """Replace observers by quantize and dequantize, and weights by integers.

    `weights` remembers what each tensor became, so that a weight shared by several ops or graphs is quantized once.
    """

    weights: WeightTable = field(default_factory=dict)
    name: ClassVar[str] = "convert"
    after: ClassVar[tuple[str, ...]] = ("observe",)

    def apply(self, gm: fx.GraphModule) -> int:
        """Return how many edges were quantized."""
        work = _Conversion(gm, self.weights)
        count = 0
        for site in list(claimed_sites(gm)):
            # The bias comes last: its scale is the product of the others.
            for role in sorted(site.claim.specs, key=lambda role: role == "bias"):
                for edge in site.edges.get(role, ()):
                    replacement = work.quantized(site, edge, site.claim.specs[role])
                    edit.set_argument(edge.user, edge.index, replacement)
                    count += 1
        edit.sweep(gm)
        return count


@dataclass
class _Conversion:
    """One run of `Convert`: `placed` maps (source, spec) to the dequantize node that stands for it."""

    gm: fx.GraphModule
    weights: WeightTable
    placed: dict[tuple[fx.Node, QuantSpec], fx.Node] = field(default_factory=dict)

    def quantized(self, site: ClaimedSite, edge: Edge, spec: QuantSpec) -> fx.Node:
        """Return the node that `edge` shall read instead."""
        source: fx.Node = edge.source
        if spec.dtype == "int32":
            return self._bias(site, source, spec)
        if (source, spec) not in self.placed:
            self.placed[source, spec] = self._insert(source, spec)
        return self.placed[source, spec]

    def _insert(self, source: fx.Node, spec: QuantSpec) -> fx.Node:
        if edit.is_constant(source):
            return self._constant(source, spec)
        if source.op == "call_module":
            return self._static(source, spec)
        if spec.dynamic:
            return insert_dynamic(source, spec)
        raise FxQuantError(f"%{source.name} was not observed: convert takes a graph that came from fxquant.prepare")

    def _constant(self, source: fx.Node, spec: QuantSpec) -> fx.Node:
        integers, qparams = integers_of(self.gm, source, spec, self.weights)
        return self._store(source, integers, qparams, spec)

    def _static(self, observer: fx.Node, spec: QuantSpec) -> fx.Node:
        (source,) = observer.all_input_nodes
        module = self.gm.get_submodule(str(observer.target))
        assert isinstance(module, observers.Observer)
        try:
            qparams = module.qparams()
        except CalibrationError as error:
            place = edit.path_of(source) or "the model's own forward"
            raise CalibrationError(f"%{source.name} in {place}: {error}") from None
        scale, zero_point = store_qparams(self.gm, f"qparams.{source.name}", qparams, observer)
        return insert_quantize(source, scale, zero_point, spec, qparams.axis, observer)

    def _bias(self, site: ClaimedSite, source: fx.Node, spec: QuantSpec) -> fx.Node:
        """Quantize a bias to int32 with S = S_x·S_w and Z = 0 (Jacob et al. 2018, equation 11)."""
        bias = edit.get_tensor(self.gm, source)
        scale = torch.ones_like(bias)
        for role in ("x", "weight"):
            scale = scale * edit.get_tensor(self.gm, site.edges[role][0].source.args[1])
        qparams = QParams(scale, torch.zeros_like(scale, dtype=torch.int32), 0)
        return self._store(source, quantize(bias, qparams, spec), qparams, spec)

    def _store(self, source: fx.Node, integers: Tensor, qparams: QParams, spec: QuantSpec) -> fx.Node:
        name = f"{source.target}_{spec.dtype}"
        q = store_integers(self.gm, name, integers, spec, source)
        scale, zero_point = store_qparams(self.gm, name, _narrowed(qparams, spec), source)
        return insert_dequantize(q, scale, zero_point, spec, qparams.axis, source)


def _narrowed(qparams: QParams, spec: QuantSpec) -> QParams:
    """Return the QParams with as small a zero point as holds it, where there is one for each of many groups."""
    if spec.group_size is None:
        return qparams
    zero_point = qparams.zero_point.to(spec.format.torch_dtype)
    if spec.symmetric:
        zero_point = zero_point.new_tensor(0 if spec.format.signed else (spec.qmax + 1) // 2)
    return qparams._replace(zero_point=zero_point)


def integers_of(gm: fx.GraphModule, source: fx.Node, spec: QuantSpec, known: WeightTable) -> tuple[Tensor, QParams]:
    """Return a constant as integers, found once for each tensor.

    Raises:
        CalibrationError: it holds NaN or infinity; names it.
    """
    tensor = edit.get_tensor(gm, source)
    if (id(tensor), spec) not in known:
        qparams = constant_qparams(tensor, spec, str(source.target))
        known[id(tensor), spec] = (tensor, quantize(tensor, qparams, spec), qparams)
    _, integers, qparams = known[id(tensor), spec]
    return integers, qparams


def constant_qparams(tensor: Tensor, spec: QuantSpec, name: str) -> QParams:
    """Return the QParams of a constant: of its own range, or as the spec's observer finds them.

    Raises:
        CalibrationError: it holds NaN or infinity; names it.
    """
    if not torch.isfinite(tensor).all():
        raise CalibrationError(f"{name} holds NaN or Inf: check the checkpoint that it was loaded from")
    if spec.observer == "minmax" or not tensor.any():
        return choose_qparams(tensor, spec)
    observer = observers.create(spec)
    observer(tensor)
    return observer.qparams()
