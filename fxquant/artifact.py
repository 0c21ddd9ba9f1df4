"""Artifacts: a portable graph, captured or Q/DQ, as a folder of plain data; `save` and `load`.

    model.safetensors   every tensor once, plain integers for what is quantized
    graph.json          the graphs (graph/serial.py), and which tensor each of their constants is
    config.json         the configuration of the model where it has one, for other tools
    ledger.json         what was done to each op, for people and for comparison
    manifest.json       format version, sizes and checksums; written last

Nothing in it is code; loading runs, imports and unpickles no part of it. The checksums find damage, not forgery, so
`load` does not trust what they pass either.
"""

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from fxquant import atomic, manifest, stages, tensor_file
from fxquant.backends import Backend, load_backend
from fxquant.errors import ArtifactError, ConfigError, FxQuantError
from fxquant.graph import edit, serial
from fxquant.graph.place import move, read_device
from fxquant.ledger import read_ledger
from fxquant.memory import give_back
from fxquant.portable import portable
from fxquant.program import Program

log = logging.getLogger("fxquant.artifact")

MODEL, GRAPH, CONFIG, LEDGER = "model.safetensors", "graph.json", "config.json", "ledger.json"
_OWN = (MODEL, GRAPH, CONFIG, LEDGER)
_ALONE = "forward"  # what the file calls a graph that is not part of a Program
_Reader = Callable[[Any, Mapping[str, list[str]]], dict[str, dict[str, Tensor]]]  # of `tensor_file`, for one file


def save(graph: fx.GraphModule | Program, folder: str | Path) -> Path:
    """Write a captured, converted or lowered graph as an artifact, and return its folder.

    A lowered graph is saved as the Q/DQ graph that it came from, so an artifact is the same for every machine. An
    artifact that is in `folder` already is replaced as a whole; files that others put beside it are kept. A kill at
    any moment leaves the old artifact or the new one.

    Raises:
        ArtifactError: the graph is at another stage or holds what cannot be saved; `folder` holds something else; or
            it cannot be written. What was there is then there still.
    """
    check_destination(folder)
    place = Path(folder).resolve()
    graphs = _portable(graph)
    document, tensors = _described(graph, graphs)
    try:
        with atomic.replacing(place) as partial:
            _write(partial, document, tensors, graphs)
            _keep(place, partial)
    except OSError as error:
        raise ArtifactError(f"the artifact {place} cannot be written: {error}; what was there is untouched") from error
    return Path(folder)


def load(
    folder: str | Path,
    backend: str | Path | Backend | None = None,
    *,
    lower: bool = True,
    padded_outputs: str | None = None,
    device: str | torch.device = "cpu",
) -> fx.GraphModule | Program:
    """Read an artifact and lower it for a backend; neither the model's code nor a retrace is needed.

    Outputs equal those of the graph that was saved, to the bit, on the same machine with the same torch.

    Args:
        folder: what `save` wrote.
        backend: as for `fxquant.lower`; by default the one that the graph was prepared for.
        lower: False gives the Q/DQ graph itself. A captured float graph comes back as it is in any case.
        padded_outputs: "exact" or "zero", as for `fxquant.lower`; by default what the graph was lowered with.
        device: where the graph is to run, wherever the one that was saved did.

    Raises:
        ArtifactError: the artifact is missing, incomplete, damaged, of a newer format, or none; names the file.
        ConfigError: `backend` is not known, or its file is wrong; `device` cannot be used here.
    """
    chosen = load_backend(backend) if backend is not None else None
    where = read_device(device)
    asked = Path(folder).resolve()
    place = atomic.find(asked)
    if place != asked:
        log.warning("%s is missing, as a save was interrupted: reading its former contents at %s", asked, place)
    files = manifest.read(place)
    model, described = (manifest.verify(place, files, name) for name in (MODEL, GRAPH))
    try:
        graph = _read(model, described)
        move(graph.graphs.values() if isinstance(graph, Program) else [graph], where)
        return _ready(graph, chosen, padded_outputs) if _stage(graph) == "converted" and lower else graph
    except ArtifactError as error:
        raise ArtifactError(f"{place}: {error}. Was it altered, or written by another version?") from error


def describe(graph: fx.GraphModule | Program) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what graph.json would say of a graph, and the tensors of model.safetensors by their keys.

    Raises:
        ArtifactError: as for `save`.
    """
    return _described(graph, _portable(graph))


def rebuild(document: Any, tensors: Mapping[str, Tensor], backend: Backend | None = None) -> fx.GraphModule | Program:
    """Return what `load` would of what `describe` returned; neither it nor the tensors are trusted.

    Raises:
        ArtifactError: they are not what `describe` returns, or of a newer format.
    """
    graph = _assembled(document, Path(GRAPH), lambda tables, wanted: tensor_file.pick(tables, wanted, tensors))
    return _ready(graph, backend, None) if _stage(graph) == "converted" else graph


def _ready(
    graph: fx.GraphModule | Program, backend: Backend | None, padded_outputs: str | None
) -> fx.GraphModule | Program:
    """Return the lowered graph of a converted one, whose tensors are then let go."""
    lowered = _lower(graph, backend, padded_outputs)
    _forget(graph)
    give_back()
    return lowered


def _described(
    graph: fx.GraphModule | Program, graphs: dict[str, fx.GraphModule]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    tables, tensors = tensor_file.collect({name: edit.constants(gm) for name, gm in graphs.items()})
    document = {
        "version": manifest.VERSION,
        **manifest.versions(),
        "adapter": graph.adapter if isinstance(graph, Program) else None,
        "graphs": {name: {"tensors": tables[name], **serial.to_data(gm)} for name, gm in graphs.items()},
    }
    return document, tensors


def _forget(graph: fx.GraphModule | Program) -> None:
    """Let a graph that is needed no more drop its tensors: its nodes form cycles, which would hold them for long."""
    for module in graph.modules():
        module._parameters.clear()
        module._buffers.clear()


def check_destination(folder: str | Path) -> None:
    """Raise `ArtifactError` if `folder` holds something else than an artifact, so that `save` would refuse it."""
    _occupants(Path(folder).resolve())


def _occupants(place: Path) -> list[Path]:
    return atomic.occupants(place, "save", "artifact", manifest.is_artifact, ArtifactError)


def _portable(graph: fx.GraphModule | Program) -> dict[str, fx.GraphModule]:
    if not isinstance(graph, fx.GraphModule | Program):
        raise ArtifactError(f"save takes a graph from fxquant, got a {type(graph).__name__}")
    graphs = graph.graphs if isinstance(graph, Program) else {_ALONE: graph}
    try:
        return {name: portable(gm) for name, gm in graphs.items()}
    except FxQuantError as error:
        raise ArtifactError(f"the graph cannot be saved: {error}") from None


def _keep(place: Path, partial: Path) -> None:
    """Copy what others put beside the artifact in `place`."""
    for path in _occupants(place):
        if path.name in (*_OWN, manifest.FILE):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, partial / path.name, symlinks=True)
        else:
            shutil.copy2(path, partial / path.name, follow_symlinks=False)


def _write(
    folder: Path, document: dict[str, Any], tensors: dict[str, Tensor], graphs: dict[str, fx.GraphModule]
) -> None:
    tensor_file.write(folder / MODEL, tensors)
    manifest.write_json(folder / GRAPH, document)
    ledgers = {name: json.loads(read_ledger(gm).to_json()) for name, gm in graphs.items()}
    manifest.write_json(folder / LEDGER, ledgers, indent=1)
    config = next((facts["config"] for gm in graphs.values() if "config" in (facts := edit.marks(gm))), None)
    if config is not None:
        manifest.write_json(folder / CONFIG, config, indent=1)
    manifest.write(folder, [name for name in _OWN if (folder / name).exists()])


def _read(model: Path, described: Path) -> fx.GraphModule | Program:
    """Return the graph or program of the two files, whose contents are not to be trusted."""
    document = manifest.read_json(described)
    return _assembled(document, described, lambda tables, wanted: tensor_file.read(model, tables, wanted))


def _assembled(document: Any, described: Path, read: _Reader) -> fx.GraphModule | Program:
    found = document.get("graphs") if isinstance(document, dict) else None
    if not isinstance(found, dict) or not found:
        raise ArtifactError(f"{GRAPH} holds no graphs")
    manifest.check_version(described, document)
    wanted = {name: serial.constants(data) for name, data in found.items()}
    tensors = read({name: data.get("tensors") for name, data in found.items()}, wanted)
    graphs = {name: serial.from_data(data, tensors[name]) for name, data in found.items()}
    adapter = document.get("adapter")
    if adapter is None:
        if list(graphs) != [_ALONE]:
            raise ArtifactError(f"{GRAPH} holds the graphs {', '.join(graphs)[:80]} and names no adapter to call them")
        return graphs[_ALONE]
    try:
        return Program(graphs, adapter)
    except ConfigError as error:
        raise ArtifactError(f"{GRAPH} holds no Program that can be built here: {error}") from None


def _stage(graph: fx.GraphModule | Program) -> str:
    """Return the stage of a graph, or of all graphs of a Program."""
    graphs = graph.graphs if isinstance(graph, Program) else {_ALONE: graph}
    stages_found = [edit.marks(gm).get("stage") for gm in graphs.values()]
    if stages_found not in (["captured"] * len(graphs), ["converted"] * len(graphs)):
        raise ArtifactError(
            f"{GRAPH} holds graphs at {str(stages_found)[:80]}: expected all captured, or all converted"
        )
    return str(stages_found[0])


def _lower(
    graph: fx.GraphModule | Program, backend: Backend | None, padded_outputs: str | None
) -> fx.GraphModule | Program:
    """Lower a graph whose claims and backend may be hostile: they are data, and can do no more than not fit."""
    try:
        return stages.lower(graph, backend, padded_outputs=padded_outputs)
    except FxQuantError as error:
        raise ArtifactError(f"it cannot be lowered: {error}; lower=False gives its Q/DQ graph") from error
    except (AssertionError, AttributeError, LookupError, RuntimeError, SyntaxError, TypeError, ValueError) as error:
        found = f"{type(error).__name__}: {error}"
        raise ArtifactError(
            f"what {GRAPH} says of its ops does not fit them ({found}); lower=False ignores it"
        ) from error
