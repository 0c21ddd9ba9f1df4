"""What was found of rules and limits, as tables of text."""

from collections.abc import Iterable, Sequence

from tabulate import tabulate

from fxquant.verification.limits import LimitRow
from fxquant.verification.rules import RuleRow

HOLDS, MORE, BROKEN, NOT, ABSENT = "yes", "+", "FAILS", ".", ""
LEGEND = (
    f"{HOLDS}: the file allows it and it holds; {MORE}: it holds, and the file does not allow it; "
    f"{NOT}, and what is not shown: neither; {BROKEN}: the file allows it and it does not hold"
)


def rules_table(rows: Iterable[RuleRow]) -> str:
    """Return a line for each rule and recipe; the difference is the largest between kernel and Q/DQ form, in steps."""
    head = ("rule", "op", "recipe", "kernel", "scheme", "difference", "verdict")
    body = [
        (
            row.number,
            row.use,
            row.recipe,
            row.kernel,
            row.scheme,
            "" if row.difference is None else f"{row.difference:.2g}",
            f"{row.status}: {row.reason}" if row.reason else row.status,
        )
        for row in rows
    ]
    return tabulate(body, head, disable_numparse=True)


def limits_tables(rows: Sequence[LimitRow]) -> str:
    """Return a table for each role of each kernel, numbers down and scales across, and a line for the sizes."""
    parts = []
    for kernel in dict.fromkeys(row.kernel for row in rows):
        own = [row for row in rows if row.kernel == kernel]
        for role in dict.fromkeys(row.role for row in own if row.role):
            parts.append(_matrix(f"{kernel} {role}", [row for row in own if row.role == role]))
        parts.append(_sizes(kernel, [row for row in own if not row.role]))
    return "\n\n".join([*parts, LEGEND]) if parts else ""


def _matrix(title: str, rows: Sequence[LimitRow]) -> str:
    across = [name for name in dict.fromkeys(row.scales for row in rows) if name]
    cells = {(row.numbers, row.scales or across[0]): _cell(row) for row in rows}
    body = [
        (numbers, *(cells.get((numbers, name), ABSENT) for name in across))
        for numbers in dict.fromkeys(row.numbers for row in rows if row.holds or row.promised)
    ]
    return tabulate(body, (title, *across), disable_numparse=True)


def _sizes(kernel: str, rows: Sequence[LimitRow]) -> str:
    lines = []
    for axis in dict.fromkeys(row.numbers for row in rows):
        found = [(row.scales, _cell(row)) for row in rows if row.numbers == axis]
        sizes = (size if cell == HOLDS else f"{size} {cell}" for size, cell in found)
        lines.append((kernel, axis, ", ".join(sizes)))
    return tabulate(lines, ("sizes of", "axis", "hold"), disable_numparse=True)


def _cell(row: LimitRow) -> str:
    if row.holds:
        return HOLDS if row.promised else MORE
    return BROKEN if row.promised else NOT
