"""Which row-local ops of a graph can run together: connected, on the same rows, and with no way out and back in."""

from torch import fx

from fxquant.graph import edit
from fxquant.passes.row_steps import BYTES, Step, leading, read_step, serves

Rows = tuple[int, ...] | None
Steps = dict[fx.Node, Step]


def regions(gm: fx.GraphModule) -> list[list[fx.Node]]:
    """Return the regions of two or more steps, each in the order of the graph."""
    steps = {node: step for node in gm.graph.nodes if (step := read_step(node)) is not None}
    while True:
        rows = _rows(steps)
        steps = {node: step for node, step in steps.items() if _fits(node, step, rows)}
        group = _groups(gm, steps, rows)
        # Bytes stay inside a kernel: whoever makes or reads them elsewhere is no step of it. Columns that are read
        # elsewhere are a view there, and a copy as a step's result.
        apart = {node for node in steps if _leaks(node, steps[node], group)}
        if not apart:
            break
        steps = {node: step for node, step in steps.items() if node not in apart}
    found: dict[int, list[fx.Node]] = {}
    for node in steps:
        found.setdefault(group[node], []).append(node)
    return [region for region in found.values() if len(region) > 1]


def _rows(steps: Steps) -> dict[fx.Node, Rows]:
    """Return the rows that each step runs over: its result's, or its readers' for look-ups that all rows share."""
    rows: dict[fx.Node, Rows] = {}
    for node, step in reversed(steps.items()):
        own = leading(node)
        readers = {rows.get(user) for user in node.users}
        shared = next(iter(readers)) if len(readers) == 1 else None
        rows[node] = shared if step.kind == "embedding" and shared and serves(own, shared) else own
    return rows


def _fits(node: fx.Node, step: Step, rows: dict[fx.Node, Rows]) -> bool:
    """Say whether every operand has the step's rows, or repeats over them where the kernel takes that."""
    wanted = rows[node]
    repeating = {"embedding": step.values[:1], "add": step.values[1:], "multiply": step.values[1:]}.get(step.kind, ())
    return all(
        rows.get(value, leading(value)) == wanted or (value in repeating and serves(leading(value), wanted))
        for value in step.values
    )


def _groups(gm: fx.GraphModule, steps: Steps, rows: dict[fx.Node, Rows]) -> dict[fx.Node, int]:
    """Return the number of the region of each step: steps are joined by edges within one level.

    The level rises where a value leaves the steps, or goes to other rows, so a way out and back in ends higher up.
    """
    level: dict[fx.Node, int] = {}
    group: dict[fx.Node, int] = {}
    for node in gm.graph.nodes:
        level[node] = max(
            (level[source] + _rises(source, node, steps, rows) for source in node.all_input_nodes), default=0
        )
        if node not in steps:
            continue
        joined = {group[source] for source in node.all_input_nodes if source in steps and level[source] == level[node]}
        group[node] = min(joined, default=len(group))
        for other, number in group.items():
            if number in joined:
                group[other] = group[node]
    return group


def _rises(source: fx.Node, node: fx.Node, steps: Steps, rows: dict[fx.Node, Rows]) -> bool:
    return source in steps and (node not in steps or rows[source] != rows[node])


def _leaks(node: fx.Node, step: Step, group: dict[fx.Node, int]) -> bool:
    known = edit.info(node)
    inner = step.kind == "columns" or (known is not None and known.dtype in BYTES)
    outside = inner and any(group.get(user) != group[node] for user in node.users)
    taken = step.kind in ("columns", "linear_bytes") and group.get(step.values[0]) != group[node]
    return outside or taken
