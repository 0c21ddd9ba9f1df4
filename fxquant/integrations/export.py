"""`fxquant.export`: a quantized graph as the file of another runtime."""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import fx

from fxquant import atomic, manifest
from fxquant.errors import ConfigError, ExportError
from fxquant.graph import edit
from fxquant.integrations.checkpoints.write_compressed import write_compressed
from fxquant.integrations.checkpoints.write_gptq import write_gptq
from fxquant.integrations.onnx.export import write_onnx
from fxquant.integrations.pt2e.executorch import write_executorch
from fxquant.integrations.pt2e.outwards import write_pt2e
from fxquant.integrations.substitutions import Substitution, Written
from fxquant.ledger import read_ledger
from fxquant.portable import portable
from fxquant.program import Program
from fxquant.registry import Registry

# Writes Q/DQ graphs by name into a folder, for this target (None: the format's own).
Writer = Callable[[Mapping[str, fx.GraphModule], Path, str | None], dict[str, Written]]
FORMATS: Registry[Writer] = Registry("format")


def _a_file_each(write: Callable[[fx.GraphModule, Path, str, str | None], Written]) -> Writer:
    """Return the writer of a format that has a file for each graph."""
    return lambda graphs, folder, target: {name: write(gm, folder, name, target) for name, gm in graphs.items()}


FORMATS.add("onnx", _a_file_each(write_onnx))
FORMATS.add("pt2e", _a_file_each(write_pt2e))
FORMATS.add("executorch", _a_file_each(write_executorch))
FORMATS.add("gptq", write_gptq)
FORMATS.add("compressed-tensors", write_compressed)
REPORT = "export.json"
_KIND = "fxquant export"
_ALONE = "model"  # what the file of a graph is called that is no part of a Program


@dataclass(frozen=True)
class Exported:
    """A written folder: its files, and for each graph what was substituted in it and what else is to be known."""

    folder: Path
    files: tuple[str, ...]
    written: dict[str, Written]

    @property
    def substitutions(self) -> dict[str, tuple[Substitution, ...]]:
        """What was substituted in each graph."""
        return {name: each.substitutions for name, each in self.written.items()}

    def summary(self) -> str:
        """Return the files, and a line for each kind of substitution: how often, and what it means."""
        lines = [f"wrote {', '.join(self.files)} in {self.folder}"]
        for name, found in self.substitutions.items():
            lines.append(f"{name}: {len(found)} substitutions{':' if found else ''}")
            texts = {each.name: each for each in found}
            for kind, count in Counter(each.name for each in found).items():
                numbers = "same numbers" if texts[kind].exact else "other numbers"
                lines.append(f"  {count} × {kind} ({numbers}): {texts[kind].text}")
            lines += [f"  {text}" for text in self.written[name].notes]
        return "\n".join(lines)


def export(
    graph: fx.GraphModule | Program, folder: str | Path, *, format: str = "onnx", target: str | None = None
) -> Exported:
    """Write a converted or lowered graph, or each graph of a Program, as files of another runtime, and return a report.

    The folder gets one file a graph, `model` or the graph's name, or one checkpoint of them all, and `export.json`, the
    report. It is new, empty or holds an export, which is replaced as a whole; where something fails, it is left as it
    was.

    Args:
        graph: what `convert`, `lower`, `quantize` or `load` returns.
        folder: where the files go.
        format: "onnx", "pt2e" or "executorch"; or of a checkpoint "gptq" or "compressed-tensors".
        target: the runtime to write for (docs/export.md); by default that of the format.

    Raises:
        ConfigError: an unknown format or target, or a package that is missing.
        ExportError: an op that the target cannot express, by name; or `folder` holds something else.
    """
    write = FORMATS[format]
    graphs = {_ALONE: graph} if isinstance(graph, fx.GraphModule) else _graphs(graph)
    check_destination(folder)
    place = Path(folder).resolve()
    converted = {name: _converted(gm) for name, gm in graphs.items()}
    try:
        with atomic.replacing(place) as partial:
            found = write(converted, partial, target)
            files = tuple(sorted(path.name for path in partial.iterdir()))
            manifest.write_json(partial / REPORT, _report(format, target, converted, found), indent=1)
    except OSError as error:
        raise ExportError(f"{place} cannot be written: {error}; what was there is untouched") from error
    return Exported(Path(folder), files, found)


def check_destination(folder: str | Path) -> None:
    """Raise `ExportError` if `folder` holds something else than an export, so that `export` would refuse it."""
    atomic.occupants(Path(folder).resolve(), "export", "export", _is_export, ExportError)


def _is_export(folder: Path) -> bool:
    try:
        data = json.loads((folder / REPORT).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(data, dict) and data.get("kind") == _KIND


def _graphs(graph: Program) -> dict[str, fx.GraphModule]:
    if not isinstance(graph, Program):
        raise ConfigError(f"export takes a graph or a Program from fxquant, got a {type(graph).__name__}")
    return graph.graphs


def _converted(gm: fx.GraphModule) -> fx.GraphModule:
    """Return the Q/DQ graph of a graph; a float graph is none."""
    qdq = portable(gm)
    if edit.marks(qdq).get("stage") != "converted":
        raise ExportError("the graph is captured and not quantized: give what fxquant.convert or quantize returns")
    return qdq


def _report(
    format: str,
    target: str | None,
    graphs: dict[str, fx.GraphModule],
    found: dict[str, Written],
) -> dict[str, object]:
    described = {
        name: {
            "substitutions": [each.to_dict() for each in written.substitutions],
            "notes": list(written.notes),
            "ledger": json.loads(read_ledger(gm).to_json()),
        }
        for name, gm in graphs.items()
        for written in (found.get(name, Written(())),)
    }
    return {"kind": _KIND, **manifest.versions(), "format": format, "target": target, "graphs": described}
