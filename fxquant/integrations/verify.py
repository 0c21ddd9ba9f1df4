"""`fxquant.verify`: an artifact on every runtime that is installed here, held against its own Q/DQ graph."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, fx

from fxquant.artifact import load
from fxquant.backends import known_backends, load_backend
from fxquant.errors import ConfigError, DataError, ExportError, MissingExtraError, first_line
from fxquant.evaluation.timing import interleave
from fxquant.graph.signature import signature_of
from fxquant.integrations.export import REPORT, export
from fxquant.integrations.runtimes import RUNTIMES, Runtime
from fxquant.kernels.devices import CPU, Device
from fxquant.verification.difference import difference
from fxquant.verification.input_file import read_inputs
from fxquant.verification.inputs import generated_inputs
from fxquant.verification.rounding import output_steps
from fxquant.verification.verification import RuntimeRow, Status, Verification
from fxquant.verification.whole import Call, as_call, converted_graphs, devices_of, lowered_on

WARMUP = 1


@dataclass(frozen=True)
class _Expected:
    """What a file computes: its outputs, and a step of each."""

    outputs: Sequence[Any]
    steps: tuple[float, ...]


@dataclass(frozen=True)
class _Case:
    """A Q/DQ graph with inputs; the folder is for the files of exports."""

    name: str
    gm: fx.GraphModule
    inputs: tuple[Tensor, ...]
    expected: _Expected
    size: int
    folder: Path


@dataclass(frozen=True)
class _Candidate:
    """A runtime that is ready, what it has to compute, and the row to fill in; one without a call has its row."""

    row: RuntimeRow
    expected: _Expected
    call: Call | None = None


def verify(
    artifact: str | Path,
    inputs: str | Path | None = None,
    *,
    tolerance: float = 1.0,
    rounds: int = 5,
    backends: Iterable[str] | None = None,
    runtimes: Iterable[str] | None = None,
) -> Verification:
    """Run an artifact on every runtime that is installed, and compare outputs, latency and size.

    They are fxquant's own backends, as far as their kernels run here, and those of `RUNTIMES`, each on the file that
    `export` writes for it. Of a `Program` each graph is run by itself.

    Args:
        artifact: a folder that `save` wrote, of a quantized graph.
        inputs: a `.npz` or `.safetensors` file (verification/input_file.py); by default tensors of the captured
            shapes from a fixed seed.
        tolerance: differences that do not count, in output steps (verification/rounding.py).
        rounds: of timing, one call of each runtime in turn; 0 for none.
        backends: names or paths of backend files; by default all that are known.
        runtimes: names in `RUNTIMES`; by default all.

    Raises:
        ArtifactError: there is no artifact, or a damaged one.
        FxQuantError: it is of a graph that is not quantized.
        DataError: the inputs are no such file, or `tolerance` or `rounds` are negative.
        ConfigError: an unknown backend or runtime.
    """
    if tolerance < 0 or rounds < 0:
        raise DataError(f"tolerance = {tolerance}, rounds = {rounds}: expected no negative numbers")
    others = {name: RUNTIMES[name] for name in (RUNTIMES if runtimes is None else runtimes)}
    own = list(known_backends()) if backends is None else list(backends)
    size = sum(path.stat().st_size for path in Path(artifact).iterdir()) if Path(artifact).is_dir() else 0
    graphs = converted_graphs(load(artifact, lower=False))
    given = read_inputs(inputs, graphs) if inputs is not None else {n: generated_inputs(g) for n, g in graphs.items()}
    rows: list[RuntimeRow] = []
    for name, gm in graphs.items():
        with TemporaryDirectory() as folder:
            case = _Case(name, gm, given[name], _expected(gm, given[name]), size, Path(folder))
            named = backends is not None
            candidates = [_reference(case), *(each for b in own for each in _own(case, b, named))]
            candidates += [_other(case, each, runtime) for each, runtime in others.items()]
            rows += _measured(case, candidates, tolerance, rounds)
    return Verification(tuple(rows), tolerance)


def _expected(gm: fx.GraphModule, inputs: tuple[Tensor, ...]) -> _Expected:
    outputs = as_call(gm)(inputs)
    with torch.no_grad():
        return _Expected(outputs, output_steps(gm, inputs, outputs))


def _reference(case: _Case) -> _Candidate:
    row = RuntimeRow(runtime="Q/DQ graph", status=Status.REFERENCE, graph=case.name, size=case.size)
    return _Candidate(row, case.expected, as_call(case.gm))


def _own(case: _Case, name: str, named: bool) -> Iterator[_Candidate]:
    """Yield a backend on the best device that it has here; one that cannot be loaded is an error if it is named."""
    row = RuntimeRow(runtime=f"fxquant {name}", status=Status.ABSENT, graph=case.name)
    try:
        backend = load_backend(name)
    except ConfigError as error:
        if named:
            raise
        yield _Candidate(replace(row, remarks=(str(error),)), case.expected)
        return
    known = [device for device in devices_of(backend) if device.graphs]
    ready = [device for device in known if device.missing is None]
    if not ready:
        reasons = tuple(f"{device.name}: {device.missing}" for device in known)
        yield _Candidate(replace(row, remarks=reasons), case.expected)
        return
    remark = (ready[0].name,) if len(ready) == 1 else ()
    chosen = next((device for device in ready if device.place != CPU), Device("this machine", entered=nullcontext))
    remark = (chosen.name,) if chosen.place != CPU else remark
    row = replace(row, runtime=f"fxquant {backend.name}", size=case.size, remarks=remark)
    try:
        yield _Candidate(row, case.expected, lowered_on(chosen, case.gm, backend))
    except Exception as error:  # whatever foreign backends raise
        yield _Candidate(_failed(row, error), case.expected)


def _other(case: _Case, name: str, runtime: Runtime) -> _Candidate:
    row = RuntimeRow(runtime=name, status=Status.ABSENT, graph=case.name)
    if not runtime.installed:
        return _Candidate(replace(row, remarks=(f"not installed: {runtime.install}",)), case.expected)
    row = replace(row, runtime=f"{name} {_version(runtime.package)}".strip())
    folder = case.folder / runtime.package
    try:
        written = export(case.gm, folder, format=runtime.format, target=runtime.target)
        found = Counter(each.name for each in written.substitutions["model"] if not each.exact)
        size = sum((folder / file).stat().st_size for file in written.files if file != REPORT)
        row = replace(row, size=size, remarks=tuple(f"{count} × {kind}" for kind, count in found.items()))
        names = [leaf.name for leaf in signature_of(case.gm).leaves]
        call = runtime.start(folder / runtime.file, names, torch.get_num_threads())
        return _Candidate(row, _expected(runtime.reference(case.gm), case.inputs), call)
    except MissingExtraError as error:
        return _Candidate(replace(row, remarks=(str(error),)), case.expected)
    except ExportError as error:
        return _Candidate(replace(row, status=Status.INEXPRESSIBLE, remarks=(str(error),)), case.expected)
    except Exception as error:  # whatever other runtimes raise
        return _Candidate(_failed(row, error), case.expected)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _failed(row: RuntimeRow, error: Exception) -> RuntimeRow:
    return replace(row, status=Status.FAILS, remarks=(*row.remarks, f"{type(error).__name__}: {first_line(error)}"))


def _measured(case: _Case, candidates: Sequence[_Candidate], tolerance: float, rounds: int) -> Iterator[RuntimeRow]:
    """Yield the rows with differences, and with latencies of those that run."""
    compared = [(_compared(case, each, tolerance), each.call) for each in candidates]
    running = {
        str(at): call for at, (row, call) in enumerate(compared) if call is not None and row.status != Status.FAILS
    }
    calls = {at: (lambda call=call: call(case.inputs)) for at, call in running.items()}
    seconds = interleave(calls, rounds, WARMUP) if rounds else {}
    for at, (row, _) in enumerate(compared):
        yield replace(row, seconds=seconds.get(str(at)))


def _compared(case: _Case, candidate: _Candidate, tolerance: float) -> RuntimeRow:
    row = candidate.row
    if candidate.call is None or row.status == Status.REFERENCE:
        return row
    try:
        found = candidate.call(case.inputs)
        apart = difference(candidate.expected.outputs, found, candidate.expected.steps)
        own = difference(case.expected.outputs, found, case.expected.steps)
    except Exception as error:  # whatever other runtimes raise
        return _failed(row, error)
    status = Status.AGREES if apart.steps <= tolerance else Status.DIFFERS
    return replace(row, status=status, difference=apart, to_artifact=own.sqnr)
