"""Which of several ways to compute an op is the fastest on this GPU: measured once a shape, and kept.

What was found stands in a file of the cache, one for each GPU and set of versions, which processes share: the first to
measure a shape decides for all, so that equal processes compute alike.
"""

import hashlib
import json
import os
import statistics
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from fxquant.errors import ConfigError, suggest
from fxquant.kernels.cpu.native import cache_folder
from fxquant.memory import is_out_of_memory

VARIABLE = "FXQUANT_CUDA_CHOICE"
WARM, TIMED = 3, 10  # calls of a candidate

Run = Callable[[], Any]


@dataclass(frozen=True)
class Question:
    """An op, and what its speed depends on: sizes, with rows in classes, and dtypes."""

    op: str
    facts: tuple[int | str, ...]

    @property
    def key(self) -> str:
        return " ".join(map(str, (self.op, *self.facts)))


class Choices:
    """Answers to questions on one GPU: in memory, and in a file that processes share."""

    def __init__(self, path: Path, measure: Callable[[Run], float]) -> None:
        self._path, self._measure = path, measure
        self._known: dict[str, dict[str, Any]] | None = None
        self._passing = dict[str, str]()  # answers that are not written

    def known(self, question: Question) -> str | None:
        """Return what was chosen before, by this process or another."""
        if self._known is None:
            self._known = self._read()
        found = self._known.get(question.key)
        return self._passing.get(question.key) if found is None else str(found["chosen"])

    def choose(self, question: Question, candidates: Mapping[str, Run]) -> str:
        """Return the name of the fastest candidate; the first, if none can be run.

        One that fails is left out from then on; the file says why. Where memory was short, an answer serves this
        process alone: the next one may have more.
        """
        found = self.known(question)
        if found in candidates:
            return str(found)
        seconds, excluded, short = dict[str, float](), dict[str, str](), False
        for name, run in candidates.items():
            try:
                seconds[name] = self._measure(run)
            except Exception as error:  # whatever a library refuses a shape with
                short |= is_out_of_memory(error)
                lines = str(error).strip().splitlines() or [""]
                excluded[name] = f"{type(error).__name__}: {lines[0][:200]}"
        chosen = min(seconds, key=seconds.__getitem__) if seconds else next(iter(candidates))
        if short:
            self._passing[question.key] = chosen
            return chosen
        answer = {"chosen": chosen, "seconds": seconds, "excluded": excluded}
        return str(self._keep(question.key, answer, candidates)["chosen"])

    def _keep(self, key: str, answer: dict[str, Any], candidates: Mapping[str, Run]) -> dict[str, Any]:
        """Add an answer to the file, unless another process was there first, and return what counts."""
        assert self._known is not None, "what is known was read to see that this is not"
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self._path}.lock"):
                self._known |= self._read()
                if self._known.get(key, {}).get("chosen") not in candidates:
                    self._known[key] = answer
                    self._write()
        except OSError:  # a cache that cannot be written: what was measured serves this process
            self._known.setdefault(key, answer)
        return self._known[key]

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
            return {key: answer for key, answer in found.items() if isinstance(answer["chosen"], str)}
        except (OSError, ValueError, TypeError, KeyError, AttributeError):  # none yet, or a damaged one
            return {}

    def _write(self) -> None:
        with tempfile.NamedTemporaryFile("w", dir=self._path.parent, delete=False, encoding="utf-8") as file:
            json.dump(self._known, file, indent=1, sort_keys=True)
        os.replace(file.name, self._path)  # noqa: PTH105  Path.replace is not atomic on all systems


def run_fastest(question: Question, x: Tensor, candidates: Mapping[str, Run]) -> Any:
    """Return what the candidate that is fastest on the GPU of `x` computes; all of them compute the same.

    The first is the default: it runs where nothing was measured yet and nothing can be, as in a CUDA graph that is
    being recorded. `FXQUANT_CUDA_CHOICE` forces one by name, "op=name" with commas between several.

    Raises:
        ConfigError: the variable names no candidate of the op.
    """
    forced = forced_choice(question.op, tuple(candidates))
    if forced is not None:
        return candidates[forced]()
    if len(candidates) == 1 or not x.is_cuda:
        return next(iter(candidates.values()))()
    choices = choices_on(x.device)
    chosen = choices.known(question)
    if chosen in candidates:
        return candidates[str(chosen)]()
    if torch.cuda.is_current_stream_capturing():
        return next(iter(candidates.values()))()
    return candidates[choices.choose(question, candidates)]()


def forced_choice(op: str, names: tuple[str, ...]) -> str | None:
    """Return the candidate of `op` that the environment asks for."""
    for part in filter(None, os.environ.get(VARIABLE, "").split(",")):
        asked, _, name = (each.strip() for each in part.partition("="))
        if asked == op:
            if name not in names:
                raise ConfigError(f"{VARIABLE} asks for {name!r} to compute {op}: {suggest(name, names)}")
            return name
    return None


@cache
def choices_on(device: torch.device) -> Choices:
    """Return the answers for a GPU."""
    made_of = (torch.cuda.get_device_name(device), torch.__version__, _version("triton"), _version("fxquant"))
    digest = hashlib.sha256(repr(made_of).encode()).hexdigest()[:16]
    return Choices(cache_folder() / f"cuda_choices_{digest}.json", lambda run: seconds_on(device, run))


def seconds_on(device: torch.device, run: Run) -> float:
    """Return the median time of a call on a GPU whose cache holds nothing of it, as between the layers of a model."""
    with torch.cuda.device(device):
        cache_size = torch.cuda.get_device_properties(device).L2_cache_size
        other = torch.empty(2 * cache_size, dtype=torch.uint8, device=device)
        for _ in range(WARM):
            run()
        times = []
        for _ in range(TIMED):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            other.zero_()
            begin.record()
            run()
            end.record()
            times.append((begin, end))
        torch.cuda.synchronize()
        return statistics.median(float(begin.elapsed_time(end)) / 1e3 for begin, end in times)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
