"""`Verification`: what each runtime made of an artifact, as rows, a table, JSON and a list of problems."""

import json
import math
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from tabulate import tabulate

from fxquant.verification.difference import Difference

_HEAD = (
    "runtime", "status", "max abs", "relative", "steps", "SQNR dB", "cosine", "to artifact dB", "ms", "MB", "remarks",
)  # fmt: skip
_LEGEND = (
    "Differences are to the Q/DQ graph with what the runtime's file substitutes; to artifact, without.\n"
    "A step is how far outputs move where activations are rounded by chance."
)


class Status(StrEnum):
    """What became of a runtime; `ABSENT` and `INEXPRESSIBLE` have their reason in the remarks, and are no problem."""

    REFERENCE = "reference"
    AGREES = "agrees"
    DIFFERS = "differs"
    FAILS = "fails"
    ABSENT = "not here"
    INEXPRESSIBLE = "not expressible"


@dataclass(frozen=True, kw_only=True)
class RuntimeRow:
    """One graph on one runtime.

    `difference` is to what its file says, `to_artifact` the SQNR in dB to what the artifact's own graph computes, both
    of the worst output; `seconds` is the median latency; `size` that of its files in bytes.
    """

    runtime: str
    status: Status
    graph: str = ""
    difference: Difference | None = None
    to_artifact: float | None = None
    seconds: float | None = None
    size: int | None = None
    remarks: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class Verification:
    """The rows of all graphs and runtimes, and how many output steps were tolerated."""

    rows: tuple[RuntimeRow, ...]
    tolerance: float

    @property
    def problems(self) -> tuple[str, ...]:
        """Return each runtime that differs by more than the tolerance, and each that failed, a line each."""
        return tuple(self._problem(row) for row in self.rows if row.status in (Status.DIFFERS, Status.FAILS))

    def _problem(self, row: RuntimeRow) -> str:
        where = f"{row.runtime}, graph {row.graph}" if row.graph else row.runtime
        if row.status == Status.FAILS or row.difference is None:
            return f"{where}: {'; '.join(row.remarks)}"
        return f"{where}: differs by {row.difference.steps:.3g} output steps; {self.tolerance:g} are tolerated"

    def to_table(self) -> str:
        """Return the rows as a table, one for each graph, then each problem."""
        parts = []
        for graph in dict.fromkeys(row.graph for row in self.rows):
            body = [_cells(row) for row in self.rows if row.graph == graph]
            title = f"graph {graph}\n" if graph else ""
            parts.append(title + tabulate(body, _HEAD, disable_numparse=True))
        return "\n\n".join([*parts, _LEGEND, *(["\n".join(self.problems)] if self.problems else [])])

    def to_json(self) -> str:
        """Return all of it as JSON; infinite numbers are null, such as the SQNR of equal outputs."""
        rows = [_finite(asdict(row)) for row in self.rows]
        return json.dumps({"tolerance": self.tolerance, "rows": rows, "problems": self.problems}, indent=1)


def _cells(row: RuntimeRow) -> tuple[str, ...]:
    numbers: tuple[str, ...] = ("",) * 5
    if row.difference is not None:
        d = row.difference
        numbers = (f"{d.largest:.2g}", f"{d.relative:.1%}", f"{d.steps:.2g}", _decibel(d.sqnr), f"{d.cosine:.6f}")
    milliseconds = "" if row.seconds is None else f"{row.seconds * 1e3:.2f}"
    size = "" if row.size is None else f"{row.size / 1e6:.1f}"
    return row.runtime, row.status, *numbers, _decibel(row.to_artifact), milliseconds, size, "; ".join(row.remarks)


def _decibel(value: float | None) -> str:
    return "" if value is None else "equal" if value == math.inf else f"{value:.1f}"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
