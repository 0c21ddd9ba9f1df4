"""The tables of gpu.py: times of each way to run a model, and which goals are met."""

from collections.abc import Mapping
from dataclasses import dataclass

import common
from gpu_decoding import BF16 as DECODED_BF16
from gpu_decoding import INT4
from gpu_systems import BF16, EAGER, FP16, OURS, TORCHAO
from turns import Timing


@dataclass(frozen=True)
class Row:
    """One way to run a model: times of a call, how near its results are, or why there are none."""

    model: str
    way: str
    timing: Timing | None = None
    cosine: float | None = None
    remark: str = ""


@dataclass(frozen=True)
class Goal:
    """A ratio to reach: of the time of the best of others to that of the best of ours, on one model."""

    text: str
    others: tuple[str, ...]
    least: float
    ours: tuple[str, ...] = tuple(OURS)


GOALS = (
    Goal("torch.compile in half precision", (BF16, FP16), 1.4),
    Goal("torchao, 8 bits", tuple(TORCHAO), 1.15),
    Goal("float32 without TF32", (EAGER,), 4.5),
)
PRODUCT_GOAL = 0.7
DECODING = (Goal(DECODED_BF16, (DECODED_BF16,), 2.5, (INT4,)),)


def show(title: str, rows: list[Row], base: str) -> None:
    """Print milliseconds, and how many times faster than a base."""
    seconds = {row.way: row.timing.median for row in rows if row.timing}
    table = [
        (way, f"{1e3 * each:.3f}", f"{seconds[base] / each:.2f}" if base in seconds else "–", cosine(rows, way))
        for way, each in seconds.items()
    ]
    common.show(f"{title}: median ms, times faster than {base}, least cosine", ("", "ms", "times", "cosine"), table)
    for row in rows:
        if row.remark:
            print(f"  {row.way}: not measured: {row.remark}")


def cosine(rows: list[Row], way: str) -> str:
    """Return how near the results of a way are, where that is known."""
    found = next(row.cosine for row in rows if row.way == way)
    return "" if found is None else f"{found:.4f}"


def show_goals(rows: list[Row], goals: tuple[Goal, ...], dry: bool) -> None:
    """Print which goals of a model are met, of those for which there are figures."""
    for each in goals:
        found = ratio_of(rows, each)
        if found is not None:
            goal(f"{rows[0].model}: the best of ours, times faster than {each.text}", found, each.least, dry)


def ratio_of(rows: list[Row], wanted: Goal) -> float | None:
    """Return the time of the best of others over that of the best of ours."""
    seconds: Mapping[str, float] = {row.way: row.timing.median for row in rows if row.timing}
    ours, others = ([seconds[way] for way in ways if way in seconds] for ways in (wanted.ours, wanted.others))
    return min(others) / min(ours) if ours and others else None


def goal(text: str, found: float, least: float, dry: bool) -> None:
    """Print whether a goal is met; of a dry run nothing can be said."""
    verdict = "no judgement:" if dry else "met   " if found >= least else "MISSED"
    print(f"{verdict} {text}: {found:.3g}, goal {least:g}")
