"""The tables of cpu_encoders.py: latency, accuracy, distance from the limit, and fxquant against each peer."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import common
from encoder_models import CELLS, Subject
from peaks import Peaks
from systems import EAGER, FIXED, OPENVINO, ORT_DYNAMIC, ORT_STATIC, OURS, OWN, PACKED, PT2E, SYSTEMS, ZERO
from turns import Timing

BEST_ORT = "best ORT int8"
RAGGED = tuple(cell.name for cell in CELLS if cell.ragged)


@dataclass(frozen=True)
class Row:
    """One system in one cell; neither cell nor timing, if it could not be made. A remark keeps it out of means."""

    model: str
    cell: str
    system: str
    timing: Timing | None = None
    remark: str = ""

    @property
    def counts(self) -> bool:
        return self.timing is not None and not self.remark

    @property
    def seconds(self) -> float:
        assert self.timing is not None
        return self.timing.median


@dataclass(frozen=True)
class Accuracy:
    """Cosines of a system's sentence embeddings with those of the float model."""

    model: str
    system: str
    mean: float
    minimum: float
    sentences: int


def show_latency(model: str, rows: Sequence[Row]) -> None:
    """Print milliseconds, and how many times faster than the two float32 baselines."""
    found = {(row.cell, row.system): row for row in rows if row.timing}
    cells = list(dict.fromkeys(row.cell for row in rows if row.timing))
    table = []
    for name in dict.fromkeys(system for _, system in found):
        each = [found.get((cell, name)) for cell in cells]
        bases = [[found[cell, base] for base in (EAGER, PACKED) if (cell, base) in found] for cell in cells]
        table.append([name, *(latency(row, base) for row, base in zip(each, bases, strict=True))])
    common.show(f"{model}: median ms, times faster than {EAGER} / {PACKED}", ["", *cells], table)
    for row in rows:
        if row.remark:
            print(f"  {row.system}{f' at {row.cell}' * bool(row.cell)}: {remark(row)}")


def latency(row: Row | None, bases: Sequence[Row]) -> str:
    """Return one entry of the table of latencies."""
    if row is None:
        return "–"
    ratios = " / ".join(f"{base.seconds / row.seconds:.2f}" for base in bases)
    return f"{1e3 * row.seconds:.2f}  {ratios}{' FELL BACK' * bool(row.remark)}"


def remark(row: Row) -> str:
    """Return what is to be said of a row."""
    return f"fell back: {row.remark}" if row.timing else f"not measured: {row.remark}"


def show_accuracy(accuracies: Sequence[Accuracy]) -> None:
    """Print how near the systems' embeddings are, if any were judged."""
    if accuracies:
        table = [(each.system, f"{each.mean:.4f}", f"{each.minimum:.4f}") for each in accuracies]
        first = accuracies[0]
        title = f"{first.model}: embeddings of {first.sentences} held-out sentences against {EAGER}"
        common.show(title, ("", "cosine mean", "minimum"), table)


def show_limit(subject: Subject, rows: Sequence[Row], peaks: Peaks) -> None:
    """Print how far from the limit of its products fxquant and OpenVINO are."""
    print(f"\n{subject.name}: seconds over those of the linears at {peaks.int8 / 1e9:.0f} GOP/s and attention at "
          f"{peaks.float32 / 1e9:.0f} GFLOP/s")  # fmt: skip
    for cell in (cell for cell in CELLS if not cell.ragged):
        limit = subject.limit(cell, peaks)
        names = {row.system: row for row in rows if row.cell == cell.name and row.timing}
        found = [f"{name} {names[name].seconds / limit:.2f}" for name in (OURS, OPENVINO) if name in names]
        if found:
            print(f"  {cell.name}: limit {1e3 * limit:.2f} ms; {', '.join(found)}")


def ratios(rows: Iterable[Row], peer: str, own: str = OURS) -> dict[tuple[str, str], float]:
    """Return how many times longer a peer takes than fxquant, by model and cell, where both rows count."""
    counted = {(row.model, row.cell, row.system): row.seconds for row in rows if row.counts}
    names = (ORT_DYNAMIC, ORT_STATIC) if peer == BEST_ORT else (peer,)
    found = {}
    for model, cell, system in counted:
        peers = [counted[model, cell, name] for name in names if (model, cell, name) in counted]
        if system == own and peers:
            found[model, cell] = min(peers) / counted[model, cell, own]
    return found


def show_ratios(rows: Sequence[Row]) -> None:
    """Print fxquant against each system: geometric mean, worst cell, and the ragged cells when padding is not read."""
    table = []
    for peer in (*(name for name in SYSTEMS if name not in OWN), BEST_ORT, PACKED, EAGER):
        found, zero = ratios(rows, peer), ratios(rows, peer, ZERO)
        if found:
            (model, cell), worst = min(found.items(), key=lambda item: item[1])
            mean = f"{statistics.geometric_mean(found.values()):.2f}"
            ragged = f"{statistics.geometric_mean(zero.values()):.2f}" if zero else "–"
            table.append((peer, len(found), mean, f"{worst:.2f} {model} {cell}", ragged))
    head = ("", "cells", "geometric mean", "worst cell", "ragged, zero")
    common.show(f"Times faster {OURS} is than", head, table)


def show_goals(rows: Sequence[Row], accuracies: Sequence[Accuracy]) -> None:
    """Print which goals are met, of those for which there are figures."""
    mean: Callable[[Iterable[float]], float] = statistics.geometric_mean
    for text, found, reduce, least in (
        (f"{OPENVINO}, geometric mean", ratios(rows, OPENVINO), mean, 1.25),
        (f"{OPENVINO}, every cell", ratios(rows, OPENVINO), min, 1.0),
        (f"{OPENVINO}, ragged with {ZERO}", ratios(rows, OPENVINO, ZERO), min, 1.6),
        (f"{FIXED}, geometric mean", ratios(rows, FIXED), mean, 1.1),
        (f"{BEST_ORT}, every cell", ratios(rows, BEST_ORT), min, 1.5),
        (f"{PT2E}, geometric mean", ratios(rows, PT2E), mean, 1.5),
    ):
        if found:
            goal(f"times faster than {text}", reduce(found.values()), least)
    for each in accuracies:
        if each.system == OURS:
            goal(f"{each.model}: embedding cosine, mean", each.mean, 0.998)
            goal(f"{each.model}: embedding cosine, minimum", each.minimum, 0.996)


def goal(text: str, found: float, least: float) -> None:
    """Print whether a goal is met."""
    print(f"{'met   ' if found >= least else 'MISSED'} {text}: {found:.4g}, goal {least:g}")
