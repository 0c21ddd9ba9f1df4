"""A `Diff` as tables of text."""

from collections.abc import Iterator, Sequence

from tabulate import tabulate

from fxquant.verification.changes import LayerChange
from fxquant.verification.diff import Diff
from fxquant.verification.facts import LayerFacts

SHOWN = 10  # rows of a table, the worst first


def diff_tables(diff: Diff, limit: int | None = SHOWN) -> str:
    """Return what changed: coverage and size, layers, the `limit` (None: all) most changed scales and results."""
    parts = [_summary(diff), *_layers(diff), *_scales(diff, limit), *_errors(diff, limit), diff.note]
    parts.append("\n".join(f"regression: {each}" for each in diff.regressions) or "no regressions")
    return "\n\n".join(part for part in parts if part)


def _summary(diff: Diff) -> str:
    old, new = diff.old, diff.new
    rows = [
        (f"coverage{'' if name == 'all' else f', {name}'}", *(_share(each.coverage.get(name)) for each in (old, new)))
        for name in dict.fromkeys([*old.coverage, *new.coverage])
    ]
    rows.append(("size, MB", f"{old.size / 1e6:.1f}", f"{new.size / 1e6:.1f}"))
    rows.append(("backend", old.backend, new.backend))
    return tabulate(rows, ("", "old", "new"), disable_numparse=True)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _layers(diff: Diff) -> Iterator[str]:
    """Yield the layers that changed in one way in one row."""
    alike: dict[tuple[str, str], list[str]] = {}
    for each in diff.layers:
        alike.setdefault(_told(each), []).append(each.name)
    if alike:
        body = [(_listed(names), *told) for told, names in alike.items()]
        yield tabulate(body, ("layers", "old", "new"), disable_numparse=True)


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _told(change: LayerChange) -> tuple[str, str]:
    """Return how the layer is and was computed, as far as it differs."""
    both = [_said(layer) for layer in (change.old, change.new)]
    same = both[0].items() & both[1].items()
    old, new = (", ".join(text for key, text in said.items() if (key, text) not in same) for said in both)
    return old, new


def _said(layer: LayerFacts | None) -> dict[str, str]:
    if layer is None:
        return {"there": "not there"}
    if layer.code:
        return {"code": f"float, {layer.code}: {layer.reason}"}
    roles = {f"role {name}": f"{name} {role.scheme}" for name, role in layer.roles.items()}
    return {"op": layer.op, "kernel": f"by {layer.kernel}", **roles}


def _scales(diff: Diff, limit: int | None) -> Iterator[str]:
    if diff.scales:
        body = [
            (
                each.name,
                each.role,
                "" if each.median is None else f"{each.median:.4g}",
                f"{each.counts[0]} → {each.counts[1]} scales" if each.largest is None else f"{each.largest:.4g}",
            )
            for each in diff.scales[:limit]
        ]
        head = ("layer", "scale of", "median new/old", "largest change")
        yield tabulate(body, head, disable_numparse=True) + _more(len(diff.scales) - len(body), "scales")


def _errors(diff: Diff, limit: int | None) -> Iterator[str]:
    for graph, found in diff.errors.items():
        title = f"graph {graph}\n" if graph else ""
        if all(row.sqnr == float("inf") for row in found.rows):
            yield f"{title}every layer gives what it gave, to the bit"
        else:
            yield f"{title}{found.to_table(limit)}"


def _more(count: int, what: str) -> str:
    return f"\n… and {count} {what} that changed less" if count else ""
