"""`Certificate`: where an artifact's integer products gave the same integers, where not, and where none ran."""

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

from tabulate import tabulate

EQUAL, DIFFERS, FAILS, NOT_RUN = "equal", "differs", "fails", "not run"
_HEAD = ("backend", "device", "status", "products", "integers", "different", "outputs, SQNR dB", "remarks")


@dataclass(frozen=True, kw_only=True)
class ProductRow:
    """One product on one device: how many sums were compared as integers, how many differ, or why there are none.

    `failed` is whether its kernel raised an error, which is the `reason` then.
    """

    op: str
    path: str
    kernel: str = ""
    integers: int = 0
    different: int = 0
    failed: bool = False
    reason: str = ""

    @property
    def place(self) -> str:
        return f"{self.op} at {self.path or 'the top'}"


@dataclass(frozen=True, kw_only=True)
class DeviceRow:
    """One device of one backend: its products, and how near its outputs come to those of the Q/DQ graph, in dB.

    `missing` is why this machine has it not; `outputs` is None where it runs no whole graphs, inf where they are equal.
    """

    backend: str
    device: str
    missing: str = ""
    products: tuple[ProductRow, ...] = ()
    outputs: float | None = None
    remarks: tuple[str, ...] = ()

    @property
    def integers(self) -> int:
        return sum(each.integers for each in self.products)

    @property
    def different(self) -> int:
        return sum(each.different for each in self.products)

    @property
    def status(self) -> str:
        """Return "equal", "differs" (at least one integer), "fails" (a kernel raises) or "not run"."""
        if any(each.failed for each in self.products):
            return FAILS
        if self.different:
            return DIFFERS
        return EQUAL if self.integers else NOT_RUN

    @property
    def notes(self) -> tuple[str, ...]:
        """Why it is not here, what it could not run and why, each with how often."""
        reasons = Counter(each.reason for each in self.products if each.reason)
        counted = (f"{count} {'product' if count == 1 else 'products'}: {text}" for text, count in reasons.items())
        return (*([self.missing] if self.missing else []), *counted, *self.remarks)


@dataclass(frozen=True)
class Certificate:
    """The rows of all devices; `left_out` are the ops of the artifact that have no integer sums, and why."""

    rows: tuple[DeviceRow, ...]
    left_out: tuple[str, ...] = field(default=())

    @property
    def problems(self) -> tuple[str, ...]:
        """Return each place where integers differ or a kernel fails, a line each."""
        return tuple(self._problems())

    def _problems(self) -> Iterator[str]:
        for row in self.rows:
            for each in row.products:
                where = f"{row.backend} on {row.device}, {each.place}"
                if each.failed:
                    yield f"{where}: {each.reason}"
                elif each.different:
                    yield f"{where} ({each.kernel}): {each.different} of {each.integers} integers differ"

    def to_table(self) -> str:
        """Return the devices as a table, then each problem, then what has no integers."""
        body = [
            (
                row.backend,
                row.device,
                row.status,
                sum(bool(each.integers) for each in row.products),
                row.integers,
                row.different,
                _decibel(row.outputs),
                "; ".join(row.notes),
            )
            for row in self.rows
        ]
        left_out = [f"without integer sums: {text} ({count})" for text, count in Counter(self.left_out).items()]
        parts = [tabulate(body, _HEAD, disable_numparse=True), "\n".join(self.problems), "\n".join(left_out)]
        return "\n\n".join(part for part in parts if part)

    def to_json(self) -> str:
        """Return all of it as JSON; outputs that are equal to the bit, of infinite SQNR, are "equal"."""
        rows = [{**asdict(row), "status": row.status, "outputs": _plain(row.outputs)} for row in self.rows]
        return json.dumps({"devices": rows, "left_out": self.left_out, "problems": self.problems}, indent=1)


def _decibel(value: float | None) -> str:
    return "" if value is None else "equal" if value == math.inf else f"{value:.1f}"


def _plain(value: float | None) -> float | str | None:
    return EQUAL if value == math.inf else value if value is None or math.isfinite(value) else str(value)
