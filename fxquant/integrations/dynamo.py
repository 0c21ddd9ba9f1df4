"""The backend "fxquant" of torch.compile: Dynamo's graphs through the same stages as captured ones.

Nothing runs in float unsaid: a graph in which nothing is quantized warns, a recipe whose ranges are not known is an
error, and so is a model that is compiled again and again until Dynamo would give up and run it as it is.
"""

import gc
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from fxquant.backends import Backend
from fxquant.errors import CaptureError, ConfigError, FxQuantWarning, suggest
from fxquant.graph.enter import enter
from fxquant.integrations.compiled import CompiledGraph, count_of, graphs_of
from fxquant.integrations.ranges import Source, put_ranges, read_ranges
from fxquant.ledger import Row
from fxquant.passes.unpad import check_padded_outputs
from fxquant.quantize import check_coverage, ledger, needs_calibration
from fxquant.stages import RecipeWish, convert, lower, prepare

NAME = "fxquant"
GROUP = "torch_dynamo_backends"  # of the entry points in which Dynamo looks for backends
_SHOWN = 5  # reasons in a warning


@dataclass(frozen=True)
class Options:
    """The `options` of torch.compile, which mean what they mean to `quantize`."""

    backend: str | Path | Backend = "x86"
    recipe: RecipeWish = "dynamic"
    ranges: Source | None = None
    strict: bool = False
    padded_outputs: str = "exact"

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "Options":
        """Return the options, or raise `ConfigError` naming what is not one."""
        known = [each.name for each in fields(cls)]
        for name in given:
            if name not in known:
                raise ConfigError(f"torch.compile was given the option {name!r}: {suggest(name, known)}")
        check_padded_outputs(given.get("padded_outputs", cls.padded_outputs))
        return cls(**given)


def fxquant_backend(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
    mode: str | None = None,
) -> CompiledGraph:
    """Return what runs one of Dynamo's graphs: kernels of the backend that the options name.

    Raises:
        ConfigError: unknown options; static ranges that are not known; a setting of Dynamo that hides errors.
        CaptureError: the graph trains, or computes under autocast; or the code was compiled as often as Dynamo allows.
        CoverageError: `strict`, and an op that should be quantized stays in float.

    Warns:
        FxQuantWarning: nothing in the graph is quantized.
    """
    if mode is not None:
        raise ConfigError(f"torch.compile was given mode={mode!r}, which is Inductor's: leave it out")
    chosen = Options.of(options or {})
    frame = _checked_frame()
    compiled = CompiledGraph(enter(gm, example_inputs), _lowering(chosen), frame)
    _warn_of_float(compiled.graph(example_inputs), compiled.number)
    return compiled


def compiled(model: nn.Module) -> tuple[fx.GraphModule, ...]:
    """Return the lowered graphs that torch.compile made of a model with this backend, oldest first.

    Args:
        model: the model, what torch.compile returned for it, or a module in it; graphs are known by the parameters and
            buffers that they read. Each graph has a `ledger`.
    """
    return graphs_of(model)


def _lowering(options: Options) -> Callable[[fx.GraphModule], fx.GraphModule]:
    def run(captured: fx.GraphModule) -> fx.GraphModule:
        prepared = prepare(captured, options.backend, options.recipe)
        if needs_calibration(prepared):
            if options.ranges is None:
                raise ConfigError(
                    "this recipe has static ranges, which need calibration, and torch.compile has no batches for it: "
                    'calibrate ahead, and give what that made as options={"ranges": fxquant.quantize(model, '
                    'example_inputs, recipe=…, calibration=batches)}; or use the recipe "dynamic" or "weight-only"'
                )
            put_ranges(prepared, read_ranges(options.ranges))
        if options.strict:
            check_coverage(prepared)
        lowered = lower(convert(prepared), padded_outputs=options.padded_outputs)
        if options.strict:
            check_coverage(lowered)
        return lowered

    return run


def _warn_of_float(graph: fx.GraphModule, number: int) -> None:
    rows = ledger(graph).rows
    if any(row.quantized for row in rows):
        return
    products = [row for row in rows if row.family]
    lines = [f"  {_say(row)}" for row in products[:_SHOWN]]
    more = [f"  … and {len(products) - _SHOWN} more"] if len(products) > _SHOWN else []
    reasons = ":\n" + "\n".join(lines + more) if products else ", as it has no matrix product and no embedding"
    text = f"graph {number} of torch.compile: nothing in it is quantized{reasons}"
    warnings.warn(text, FxQuantWarning, stacklevel=2)


def _say(row: Row) -> str:
    return f"{row.op} at {row.module_path or 'the top'} ({row.code}): {row.reason}"


def _checked_frame() -> int:
    """Return Dynamo's number of the code that is compiled; raise where Dynamo would soon give up on it.

    At the limit Dynamo runs the code as it is, in float. It would not call the backend then, so what the user is to do
    is said at the last graph that it allows.
    """
    config = torch._dynamo.config
    if config.suppress_errors:
        raise ConfigError(
            "torch._dynamo.config.suppress_errors is set: where compiling fails, the float model would run and nothing "
            "would say so; set it to False"
        )
    config.fail_on_recompile_limit_hit = True
    current = torch._guards.CompileContext.current_compile_id()
    if current is None or current.frame_id is None or current.frame_compile_id is None:
        return -1
    # Dynamo counts attempts that failed, too, and after torch._dynamo.reset() numbers codes anew
    limit = config.recompile_limit
    most = max(limit - 1, 1)
    if min(count_of(current.frame_id), current.frame_compile_id) >= most:
        gc.collect()  # graphs that nothing calls any more may be part of a cycle
    made = min(count_of(current.frame_id), current.frame_compile_id)
    if made >= most:
        raise CaptureError(
            f"torch.compile has made {made} graphs of the same code, and stops at torch._dynamo.config.recompile_limit "
            f"= {limit}, where it would run the float model: where sizes vary, compile with dynamic=True, or mark them "
            "with torch._dynamo.mark_dynamic; give what changes from call to call as a tensor; where several models "
            'share the code, raise that limit. TORCH_LOGS="recompiles" tells why each graph was made'
        )
    return current.frame_id


def register() -> None:
    """Make the backend known to Dynamo, unless the installed package's entry point does."""
    if NAME not in entry_points(group=GROUP).names:
        torch._dynamo.register_backend(fxquant_backend, name=NAME)
