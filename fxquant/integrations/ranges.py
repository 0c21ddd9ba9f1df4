"""Static ranges that were found ahead: those of a calibrated graph, Program or artifact, put into other graphs.

A range belongs to an operand of an op: the module path of the op and the role of the operand, in the order of the
calls where a module has several.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import fx, nn

from fxquant import artifact
from fxquant.errors import ConfigError, suggest
from fxquant.graph import edit
from fxquant.graph.pattern import Edge
from fxquant.observers import Observation, Observer
from fxquant.passes.claims import claimed_sites
from fxquant.passes.qdq_nodes import DEQUANTIZE
from fxquant.portable import portable
from fxquant.program import Program
from fxquant.spec import QParams, QuantSpec

Source = str | Path | fx.GraphModule | Program
Key = tuple[str, str]  # module path and role


@dataclass(frozen=True)
class Found:
    """The range of an operand, and the spec that it was found for."""

    spec: QuantSpec
    qparams: QParams


class Known(Observer):
    """Stands where an observer would, with a range that was found elsewhere."""

    def __init__(self, found: Found) -> None:
        super().__init__(_meaning(found.spec))
        self.found = found.qparams

    def _observe(self, seen: Observation) -> None:
        """Take nothing in: the range is settled."""

    def _combine(self, other: Any) -> None:
        """Take nothing in: the range is settled."""

    def qparams(self) -> QParams:
        """Return what was found elsewhere."""
        return self.found


def read_ranges(source: Source) -> dict[Key, list[Found]]:
    """Return the static ranges of a calibrated graph or Program, at whatever stage, or of an artifact.

    Raises:
        ConfigError: it is none of these, or has no static ranges.
        CalibrationError: an observer has seen no data.
        ArtifactError: the artifact cannot be read.
    """
    graph = artifact.load(source, lower=False) if isinstance(source, str | Path) else source
    if not isinstance(graph, fx.GraphModule | Program):
        raise ConfigError(
            f"ranges are those of a calibrated graph, Program or artifact, not of a {type(graph).__name__}"
        )
    table: dict[Key, list[Found]] = {}
    for each in graph.graphs.values() if isinstance(graph, Program) else [graph]:
        gm = each if edit.marks(each).get("stage") == "prepared" else portable(each)
        for key, edge in _operands(gm):
            found = _found(gm, edge)
            if found is not None:
                table.setdefault(key, []).append(found)
    if not table:
        raise ConfigError(
            'the ranges hold none: give what quantize(model, …, recipe="static", calibration=batches) made'
        )
    return table


def put_ranges(prepared: fx.GraphModule, table: Mapping[Key, list[Found]]) -> None:
    """Put known ranges where a prepared graph has observers.

    Raises:
        ConfigError: an operand has no range, another number of calls, or another spec; names the module and the role.
    """
    wanted: dict[Key, list[Edge]] = {}
    for key, edge in _operands(prepared):
        if isinstance(_observer(prepared, edge), Observer):
            wanted.setdefault(key, []).append(edge)
    for key, edges in wanted.items():
        found = table.get(key, [])
        if len(found) != len(edges):
            raise ConfigError(_lacking(key, len(edges), len(found), table))
        for edge, each in zip(edges, found, strict=True):
            observer = _observer(prepared, edge)
            assert isinstance(observer, Observer), "found above"
            if _meaning(observer.spec) != _meaning(each.spec):
                where = f"the {key[1]} of the op at {key[0] or 'the top'}"
                raise ConfigError(f"the range of {where} is for {each.spec}, and the recipe asks for {observer.spec}")
            prepared.set_submodule(str(edge.source.target), Known(each))


def _operands(gm: fx.GraphModule) -> Iterator[tuple[Key, Edge]]:
    for site in claimed_sites(gm):
        for role, spec in site.claim.specs.items():
            if not spec.dynamic and spec.dtype != "int32":
                yield from (((site.claim.path, role), edge) for edge in site.edges.get(role, ()))


def _observer(gm: fx.GraphModule, edge: Edge) -> nn.Module | None:
    source = edge.source
    return gm.get_submodule(str(source.target)) if source.op == "call_module" else None


def _found(gm: fx.GraphModule, edge: Edge) -> Found | None:
    """Return the range at an operand; None where it is a constant."""
    observer, source = _observer(gm, edge), edge.source
    if isinstance(observer, Observer):
        return Found(observer.spec, observer.qparams())
    if source.target is not DEQUANTIZE or edit.is_constant(source.args[0]):
        return None
    scale, zero_point = (edit.get_tensor(gm, node) for node in source.args[1:3])
    return Found(QuantSpec.from_dict(edit.marks(source)["spec"]), QParams(scale, zero_point, source.args[3]))


def _meaning(spec: QuantSpec) -> QuantSpec:
    """Return a spec without how its range is found."""
    return replace(spec, observer="minmax", options=())


def _lacking(key: Key, calls: int, found: int, table: Mapping[Key, list[Found]]) -> str:
    path, role = key
    what = f"the {role} of the op at {path or 'the top'}"
    if found:
        return (
            f"the ranges hold {found} for {what}, and the compiled graph calls it {calls} times: keep one graph of both"
        )
    known = suggest(path, {path for path, _ in table})
    return (
        f"the ranges hold none for {what}: calibrate the module that is compiled, with the same recipe. {known[:200]}"
    )
