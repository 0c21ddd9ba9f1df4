"""The one call that runs every stage, and what it needs to know of a graph."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import fx, nn

from fxquant.backends import Backend
from fxquant.calibration import calibrate
from fxquant.capture_generation import capture_generation, generates
from fxquant.errors import CaptureError, ConfigError, CoverageError, FxQuantError
from fxquant.graph import edit
from fxquant.ladder import capture
from fxquant.ledger import Ledger, read_ledger
from fxquant.memory import give_back
from fxquant.observers import Observer
from fxquant.passes.unpad import check_padded_outputs
from fxquant.program import Program
from fxquant.stages import RecipeWish, convert, lower, prepare


def quantize(
    model: nn.Module,
    example_inputs: Any,
    *,
    backend: str | Path | Backend = "x86",
    recipe: RecipeWish = "dynamic",
    calibration: Iterable[Any] | None = None,
    strict: bool = False,
    progress: bool = True,
    padded_outputs: str = "exact",
) -> fx.GraphModule | Program:
    """Capture, prepare, calibrate, convert and lower a model in one call.

    Args:
        model: any module in float32, or what `capture` or `capture_generation` made of one; left as it is. A model
            that generates becomes a `Program` with `generate`.
        example_inputs: keyword arguments as a dict, or a tuple, as the model is called.
        backend: a packaged backend's name, the path of a backend file, or a Backend.
        recipe: a packaged recipe's name, the path of a recipe file, or a Recipe.
        calibration: batches like `example_inputs`, for recipes with static ranges.
        strict: raise `CoverageError` if an op that should be quantized stays in float.
        progress: show a bar while calibrating for more than a second.
        padded_outputs: "exact" or "zero", as for `lower`.

    Raises:
        FxQuantError: whatever the stages raise; nothing is changed then.
    """
    check_padded_outputs(padded_outputs)
    prepared = prepare(_captured(model, example_inputs), backend, recipe)
    if strict:
        check_coverage(prepared)
    if needs_calibration(prepared):
        if calibration is None:
            raise ConfigError(
                "this recipe has static ranges: give calibration=…, an iterable of batches like example_inputs, "
                'or use recipe="dynamic"'
            )
        prepared = calibrate(prepared, calibration, progress=progress)
    lowered = lower(convert(prepared), padded_outputs=padded_outputs)
    if strict:
        check_coverage(lowered)
    give_back()
    return lowered


def _captured(model: nn.Module, example_inputs: Any) -> fx.GraphModule | Program:
    """Return the graphs of a model; what is captured already is taken as it is."""
    if isinstance(model, Program):
        stages = {edit.marks(gm).get("stage") for gm in model.graphs.values()}
    else:
        stages = {edit.marks(model).get("stage")} if isinstance(model, fx.GraphModule) else {None}
    if stages == {"captured"}:
        assert isinstance(model, fx.GraphModule | Program)
        return model
    if stages == {None}:
        return capture_any(model, example_inputs)
    found = ", ".join(sorted(map(str, stages)))
    raise FxQuantError(f"quantize takes a model or a captured graph, got one that is {found} already")


def capture_any(model: nn.Module, example_inputs: Any) -> fx.GraphModule | Program:
    """Capture for generation where the model generates, and its whole forward where it does not, or not so.

    Raises:
        CaptureError: the model cannot be captured.
        InputError: the example inputs are not those of the model's forward.
    """
    if not generates(model):
        return capture(model, example_inputs)
    try:
        return capture_generation(model, example_inputs)
    except CaptureError as error:
        captured = capture(model, example_inputs)
        for gm in captured.graphs.values() if isinstance(captured, Program) else [captured]:
            record = edit.marks(gm)["capture"]
            failed = [{"rung": "generation", "reason": str(error)}, *record.get("failed", [])]
            edit.mark(gm, capture={**record, "failed": failed})
        return captured


def needs_calibration(graph: fx.GraphModule | Program) -> bool:
    """Say whether a prepared graph has observers."""
    return any(isinstance(module, Observer) for module in graph.modules())


def ledger(graph: fx.GraphModule | Program) -> Ledger:
    """Return what was done to each op of a graph, or of all graphs of a Program."""
    if isinstance(graph, Program):
        parts = [read_ledger(gm) for gm in graph.graphs.values()]
        return Ledger(tuple(row for part in parts for row in part.rows), parts[0].stage, parts[0].capture)
    if not isinstance(graph, fx.GraphModule):
        raise FxQuantError(f"ledger takes a graph or a Program from fxquant, got a {type(graph).__name__}")
    return read_ledger(graph)


def check_coverage(graph: fx.GraphModule | Program) -> None:
    """Raise `CoverageError` naming the ops that should be quantized and stay in float."""
    missed = ledger(graph).unintended
    if missed:
        lines = [f"  {row.op} at {row.module_path or 'the top'} ({row.code}): {row.reason}" for row in missed[:10]]
        more = f"\n  … and {len(missed) - 10} more" if len(missed) > 10 else ""
        raise CoverageError(
            f"strict: {len(missed)} ops stay in float:\n"
            + "\n".join(lines)
            + more
            + "\nChange the recipe, keep them in float on purpose by an override with quantize = false, or drop strict"
        )
