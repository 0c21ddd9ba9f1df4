"""`capture`: the ladder of ways to turn a model into graphs, the one that keeps most of the model whole first."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from fxquant.errors import CaptureError
from fxquant.graph import edit
from fxquant.graph.capture import capture_whole
from fxquant.graph.checks import checked_example
from fxquant.graph.example import Example
from fxquant.graph.host import host_of
from fxquant.graph.parts import capture_parts
from fxquant.graph.reach import warn_of_fixed
from fxquant.program import Program

Captured = fx.GraphModule | Program


@dataclass(frozen=True)
class Found:
    """What a rung made of a model; `limit` says why it takes fewer inputs than the model, None where it does not."""

    graph: Captured
    limit: str | None = None


@dataclass(frozen=True)
class Rung:
    """A way to capture; `climb` raises `CaptureError` where it cannot. It is given what failed or fell short above."""

    name: str
    climb: Callable[[nn.Module, Example, bool, tuple[dict[str, str], ...]], Found]


def capture(model: nn.Module, example_inputs: Any, *, dynamic: bool = True) -> Captured:
    """Return the model as one graph of ATen ops, or, where that cannot be, as a `Program` of the graphs of its modules.

    Both take the model's arguments and return the model's structure, in eval mode, outside autograd and without a
    cache. They share the model's tensors; the model itself is left as it was. The ledger names the rung of the ladder
    (`RUNGS`) that was reached, and why those above were not.

    Args:
        model: any module with float32 parameters.
        example_inputs: a dict of keyword arguments, a tuple of positional ones, or a tensor. Arguments that are not
            tensors become constants of the graph.
        dynamic: let the sizes of the inputs differ from the example's. Where one graph of the model would not take
            every size that the model takes, its modules are captured one by one. False fixes all sizes, in one graph.

    Raises:
        CaptureError: the model cannot be captured; the text names the module and the line where it failed.
        InputError: the example inputs are not those of the model's forward.

    Warns:
        FxQuantWarning: a batch or sequence dimension became fixed, and no lower rung does better.
    """
    example = checked_example(model, example_inputs)
    failed: list[dict[str, str]] = []
    narrow: Found | None = None
    first: CaptureError | None = None
    for rung in RUNGS:
        try:
            found = rung.climb(model, example, dynamic, tuple(failed))
        except CaptureError as error:
            first = first or error
            failed.append({"rung": rung.name, "reason": str(error)})
            continue
        if found.limit is None or not dynamic:
            return found.graph
        failed.append({"rung": rung.name, "reason": found.limit})
        narrow = narrow or found
    if narrow is None:
        assert first is not None, "each rung failed"
        raise first
    if isinstance(narrow.graph, fx.GraphModule):
        warn_of_fixed(narrow.graph, dynamic)
    return narrow.graph


def _whole(model: nn.Module, example: Example, dynamic: bool, failed: tuple[dict[str, str], ...]) -> Found:
    return Found(*capture_whole(model, example, dynamic))


def _modules(model: nn.Module, example: Example, dynamic: bool, failed: tuple[dict[str, str], ...]) -> Found:
    if not dynamic:
        raise CaptureError("modules are captured with dynamic sizes only: leave out dynamic=False")
    parts = capture_parts(host_of(model), example, failed)
    if not parts.graphs:
        raise CaptureError("no module of the model with parameters can be captured")
    names: dict[str, str] = {}
    for path in parts.graphs:
        name = path.replace(".", "_")
        name = name if name.isidentifier() else f"module_{name}"
        while name in names:
            name += "_"
        names[name] = path
    return Found(Program({name: parts.graphs[path] for name, path in names.items()}, "modules", model))


# In order: a rung that keeps more of the model in one graph stands above one that keeps less.
RUNGS = (Rung("whole", _whole), Rung("modules", _modules))


def record(graph: Captured) -> dict[str, Any]:
    """Return how a graph or Program was captured: `rung`, and what `failed` above it."""
    gm = graph if isinstance(graph, fx.GraphModule) else next(iter(graph.graphs.values()))
    found: dict[str, Any] = edit.marks(gm).get("capture", {})
    return found
