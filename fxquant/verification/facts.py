"""What is worth comparing of an artifact, as data: its layers, their schemes and scales, and its size."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from fxquant.graph import edit
from fxquant.ledger import read_ledger
from fxquant.passes.claims import ClaimedSite, claimed_sites
from fxquant.passes.qdq_nodes import DEQUANTIZE, DEQUANTIZE_GROUPS, UNPACK_INT4
from fxquant.spec import QuantSpec

QUANTILES = 17  # of scales that are more than so many
_DYNAMIC = "at run time"


@dataclass(frozen=True)
class Scales:
    """The scales of one role: how many, all of them or so many evenly spaced quantiles, and the tensor where known."""

    count: int
    values: tuple[float, ...]
    tensor: Tensor | None = field(default=None, compare=False)

    @classmethod
    def of(cls, tensor: Tensor) -> "Scales":
        flat = tensor.detach().double().flatten()
        if flat.numel() > QUANTILES:
            flat = torch.quantile(flat, torch.linspace(0, 1, QUANTILES, dtype=torch.float64))
        return cls(tensor.numel(), tuple(flat.tolist()), tensor)

    def ratios(self, newer: "Scales") -> Tensor | None:
        """Return newer/older, scale by scale where both tensors are known, else by quantiles; None for other counts."""
        if self.count != newer.count:
            return None
        if self.tensor is not None and newer.tensor is not None and self.tensor.shape == newer.tensor.shape:
            return (newer.tensor.double() / self.tensor.double()).flatten()
        return torch.tensor(newer.values, dtype=torch.float64) / torch.tensor(self.values, dtype=torch.float64)


@dataclass(frozen=True, kw_only=True)
class RoleFacts:
    """How an argument of a layer is quantized: its scheme in words, the shape of a constant, its scales if fixed."""

    scheme: str
    shape: tuple[int, ...] | None = None
    scales: Scales | None = None


@dataclass(frozen=True, kw_only=True)
class LayerFacts:
    """One layer; `kernel` is the one that the backend's rule names, `code` and `reason` say why it is in float."""

    graph: str
    path: str
    kind: str
    number: int
    op: str
    kernel: str
    code: str
    reason: str
    flops: int
    roles: Mapping[str, RoleFacts]

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What finds the same layer in another artifact: kinds are families, which fusions do not change."""
        return self.graph, self.path, self.kind, self.number

    @property
    def name(self) -> str:
        where = f"{self.graph}: {self.path or '.'}" if self.graph else self.path or "."
        return f"{where} ({self.kind}{f' {self.number + 1}' if self.number else ''})"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The facts of an artifact; `size` in bytes, `coverage` by family and "all" as shares of multiply-accumulates."""

    backend: str
    size: int
    coverage: Mapping[str, float]
    layers: tuple[LayerFacts, ...]


def read_facts(graphs: Mapping[str, fx.GraphModule], size: int) -> Facts:
    """Return the facts of an artifact from its Q/DQ graphs by name and the size of its files."""
    layers = tuple(layer for name, gm in graphs.items() for layer in _layers(name, gm))
    backend = edit.marks(next(iter(graphs.values()))).get("backend", {}).get("name", "")
    families = dict.fromkeys(layer.kind for layer in layers if layer.flops)
    coverage = {"all": _share(layers)} | {name: _share([x for x in layers if x.kind == name]) for name in families}
    return Facts(backend=backend, size=size, coverage=coverage, layers=layers)


def _share(layers: Any) -> float:
    total = sum(layer.flops for layer in layers)
    return sum(layer.flops for layer in layers if not layer.code) / total if total else 1.0


def _layers(name: str, gm: fx.GraphModule) -> Iterator[LayerFacts]:
    sites = {site.anchor.name: site for site in claimed_sites(gm)}
    seen: Counter[tuple[str, str]] = Counter()
    for row in read_ledger(gm).rows:
        if not (row.family or row.quantized):
            continue
        kind = row.family or row.op
        number = seen[row.module_path, kind]
        seen[row.module_path, kind] += 1
        roles = _roles(gm, sites[row.node]) if row.node in sites else {}
        yield LayerFacts(
            graph=name,
            path=row.module_path,
            kind=kind,
            number=number,
            op=row.op,
            kernel=row.kernel.removesuffix(" (planned)"),
            code=row.code,
            reason=row.reason,
            flops=row.flops,
            roles=roles,
        )


def _roles(gm: fx.GraphModule, site: ClaimedSite) -> dict[str, RoleFacts]:
    return {role: _role(gm, site, role, spec) for role, spec in site.claim.specs.items() if role in site.edges}


def _role(gm: fx.GraphModule, site: ClaimedSite, role: str, spec: QuantSpec) -> RoleFacts:
    edge = site.edges[role][0]
    node = edit.arguments(edge.user)[edge.index]
    shape = scales = None
    if isinstance(node, fx.Node) and node.target in (DEQUANTIZE, DEQUANTIZE_GROUPS) and edit.is_constant(node.args[1]):
        scales = Scales.of(edit.get_tensor(gm, node.args[1]))  # type: ignore[arg-type]
        source, known = node.args[0], edit.info(node)
        constant = edit.is_constant(source) or (isinstance(source, fx.Node) and source.target is UNPACK_INT4)
        shape = tuple(known.shape) if constant and known is not None else None
    return RoleFacts(scheme=_scheme(spec), shape=shape, scales=scales)


def _scheme(spec: QuantSpec) -> str:
    parts = [spec.dtype, spec.granularity if spec.group_size is None else f"{spec.granularity} {spec.group_size}"]
    return " ".join([*parts, "symmetric" if spec.symmetric else "affine", *([_DYNAMIC] if spec.dynamic else [])])
