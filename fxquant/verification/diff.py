"""`fxquant.diff`: two artifacts of one model, or one and the lock file of an older: what changed, what got worse."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, fx

from fxquant.artifact import load
from fxquant.errors import FxQuantError
from fxquant.evaluation.compare import Comparison, compare
from fxquant.graph import structure
from fxquant.graph.signature import signature_of
from fxquant.verification.changes import (
    LayerChange,
    ScaleChange,
    Thresholds,
    check_same_model,
    layer_changes,
    scale_changes,
)
from fxquant.verification.facts import Facts, read_facts
from fxquant.verification.input_file import read_inputs
from fxquant.verification.inputs import generated_inputs
from fxquant.verification.lock import read_lock
from fxquant.verification.whole import converted_graphs

Graphs = dict[str, fx.GraphModule]


@dataclass(frozen=True)
class Diff:
    """What changed from `old` to `new`.

    `errors` are those of new's layers against old's by graph, empty where one of them did not run, and `note` says why.
    """

    old: Facts
    new: Facts
    layers: tuple[LayerChange, ...]
    scales: tuple[ScaleChange, ...]
    errors: Mapping[str, Comparison]
    note: str
    thresholds: Thresholds

    @property
    def regressions(self) -> tuple[str, ...]:
        """Return what is worse than the thresholds allow, a line each."""
        return (*self._coverage(), *self._numbers(), *self._size())

    def _coverage(self) -> Iterator[str]:
        before, after = self.old.coverage["all"], self.new.coverage["all"]
        if before - after > self.thresholds.coverage_drop:
            lost = [
                f"{each.name} is {each.new.code}: {each.new.reason}" for each in self.layers if each.lost and each.new
            ]
            why = f": {'; '.join(lost[:3])}{'; …' if len(lost) > 3 else ''}" if lost else ""
            yield f"coverage fell from {before:.1%} to {after:.1%}{why}"

    def _numbers(self) -> Iterator[str]:
        for each in self.scales:
            if each.largest is not None and each.largest > self.thresholds.scale_ratio:
                yield f"a scale of {each.role} of {each.name} changed {each.largest:.3g}-fold"
        for graph, found in self.errors.items():
            for row in found.rows:
                if not row.sqnr >= self.thresholds.sqnr:  # NaN is none
                    where = f"{graph}: {row.module_path or '.'}" if graph else row.module_path or "."
                    yield f"{row.op} at {where} has an SQNR of {row.sqnr:.1f} dB to the old one"

    def _size(self) -> Iterator[str]:
        if self.new.size > self.old.size * (1 + self.thresholds.size_growth):
            yield f"it grew from {self.old.size / 1e6:.1f} to {self.new.size / 1e6:.1f} MB"

    def to_json(self) -> str:
        """Return all of it as JSON."""
        data = {
            "regressions": self.regressions,
            "thresholds": asdict(self.thresholds),
            "size": [self.old.size, self.new.size],
            "backend": [self.old.backend, self.new.backend],
            "coverage": [self.old.coverage, self.new.coverage],
            "layers": [{"name": each.name, "old": _way(each.old), "new": _way(each.new)} for each in self.layers],
            "scales": [asdict(each) for each in self.scales],
            "sqnr": {graph: json.loads(found.to_json()) for graph, found in self.errors.items()},
            "note": self.note,
        }
        return json.dumps(data, indent=1)


def _way(layer: Any) -> dict[str, Any] | None:
    if layer is None:
        return None
    roles = {name: role.scheme for name, role in layer.roles.items()}
    return {"op": layer.op, "kernel": layer.kernel, "code": layer.code, "reason": layer.reason, "roles": roles}


def diff(
    old: str | Path, new: str | Path, inputs: str | Path | None = None, thresholds: Thresholds | None = None
) -> Diff:
    """Compare two artifacts of one model.

    Args:
        old: an artifact, or a lock file of one; of a lock file nothing can be run.
        new: an artifact.
        inputs: a `.npz` or `.safetensors` file to run both on; by default tensors of the captured shapes from a seed.
        thresholds: what is a regression.

    Raises:
        ArtifactError: one of them is no artifact, no lock file, or damaged.
        DataError: they are of different models; the inputs are no such file.
        FxQuantError: one is of a graph that is not quantized.
    """
    before, graphs = _facts_or_lock(Path(old))
    after, newer = read_artifact(new)
    check_same_model(before, after)
    changed = Diff(
        before, after, layer_changes(before, after), scale_changes(before, after), {}, "", thresholds or Thresholds()
    )
    if graphs is None:
        return replace(changed, note="the old one is a lock file, so that no layers were run")
    given = read_inputs(inputs, newer) if inputs is not None else {n: generated_inputs(gm) for n, gm in newer.items()}
    try:
        return replace(changed, errors=_errors(graphs, newer, given))
    except FxQuantError as error:
        return replace(changed, note=f"no layers were run: {error}")


def read_artifact(path: str | Path) -> tuple[Facts, Graphs]:
    """Return the facts of an artifact and its Q/DQ graphs by name.

    Raises:
        ArtifactError: it is no artifact, or damaged.
        FxQuantError: it is of a graph that is not quantized.
    """
    graphs = converted_graphs(load(path, lower=False))
    return read_facts(graphs, sum(each.stat().st_size for each in Path(path).iterdir() if each.is_file())), graphs


def _facts_or_lock(path: Path) -> tuple[Facts, Graphs | None]:
    return (read_lock(path), None) if path.is_file() else read_artifact(path)


def _errors(old: Graphs, new: Graphs, inputs: Mapping[str, tuple[Tensor, ...]]) -> dict[str, Comparison]:
    found = {}
    for name, gm in new.items():
        if name in old:
            call = structure.build(signature_of(gm).inputs, inputs[name])
            found[name] = compare(old[name], gm, [call])
    return found
