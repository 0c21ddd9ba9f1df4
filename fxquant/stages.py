"""The staged verbs behind capture and calibrate: prepare, convert and lower; pipelines of passes, no algorithm."""

import gc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import fx

from fxquant.backends import Backend, load_backend, read_backend
from fxquant.errors import FxQuantError, FxQuantWarning, first_line
from fxquant.graph import edit, place
from fxquant.graph.foreign import entered
from fxquant.kernels.table import RUNNERS, check_device
from fxquant.memory import is_out_of_memory
from fxquant.passes.annotate import Annotate
from fxquant.passes.base import Pass, Pipeline
from fxquant.passes.canonicalize import CANONICAL
from fxquant.passes.convert import Convert
from fxquant.passes.correct_biases import CorrectBiases
from fxquant.passes.lower import Lower
from fxquant.passes.lowering import listed_passes
from fxquant.passes.observe import Observe
from fxquant.passes.share_qparams import ShareQParams
from fxquant.passes.smooth_activations import SmoothActivations
from fxquant.passes.unpad import ZERO, check_padded_outputs
from fxquant.portable import keep, portable, release
from fxquant.program import Program
from fxquant.recipe import Recipe

Graph = TypeVar("Graph", bound=fx.GraphModule | Program)
RecipeWish = str | Path | dict[str, Any] | Recipe


def prepare(graph: Graph, backend: str | Path | Backend = "x86", recipe: RecipeWish = "static") -> Graph:
    """Canonicalize a captured graph, claim its ops for a backend and put observers on static edges.

    The graph given is left as it is; tensors are shared with it.

    Raises:
        ConfigError: an unknown or invalid backend or recipe.
        FxQuantError: the graph has been prepared, converted or lowered already.
    """
    chosen = load_backend(backend)
    wish = chosen.recipe(recipe)
    sites: set[tuple[str, str]] = set()
    prepared = _each(graph, lambda gm: _prepare(gm, chosen, wish, sites))
    for override in (each for each in wish.unused(sites) if not chosen.packages(each)):
        text = (
            f"the override path = {override.path!r}, op = {override.op!r} of {wish.label} matches no op of this model"
        )
        warnings.warn(text, FxQuantWarning, stacklevel=2)
    return prepared


def _prepare(graph: fx.GraphModule, backend: Backend, recipe: Recipe, sites: set[tuple[str, str]]) -> fx.GraphModule:
    _expect_stage(graph, "prepare", "captured", "fxquant.capture")
    gm = edit.clone(graph)
    Pipeline((*CANONICAL.passes, Annotate(backend, recipe, sites), Observe())).run(gm)
    edit.mark(gm, stage="prepared", backend=backend.to_dict(), recipe=recipe.to_dict())
    return gm


def convert(prepared: Graph) -> Graph:
    """Turn a prepared and, where it has observers, calibrated graph into the Q/DQ reference graph.

    Raises:
        CalibrationError: an observer saw no data, or only zeros; names the node and the module.
        FxQuantError: the graph is at another stage.
    """
    weights = Convert()
    return _each(prepared, lambda gm: _convert(gm, weights))


def _convert(prepared: fx.GraphModule, weights: Convert) -> fx.GraphModule:
    _expect_stage(prepared, "convert", "prepared", "fxquant.prepare")
    gm = edit.clone(prepared)
    Pipeline((SmoothActivations(), CorrectBiases(weights.weights), weights, ShareQParams())).run(gm)
    edit.mark(gm, stage="converted")
    return gm


def lower(
    qdq: Graph,
    backend: str | Path | Backend | None = None,
    *,
    padded_outputs: str | None = None,
    device: str | torch.device | None = None,
) -> Graph:
    """Replace claimed ops of a Q/DQ graph by the kernels of a backend, by default the one it was prepared for.

    Another backend claims the graph anew from its Q/DQ nodes; the numbers stay those of the Q/DQ graph.

    Args:
        qdq: what `convert` returns, or a graph of quantized_decomposed operators, which torchao's `convert_pt2e`
            returns (docs/pt2e.md); left as it is.
        backend: a packaged backend's name, the path of a backend file, or a Backend.
        padded_outputs: what the outputs hold where the model's mask says padding. "exact": what the Q/DQ graph gives
            there. "zero": zeros, for callers that do not read these places; the model then runs on the tokens of a
            batch alone, and where it reads a padded place itself it reads zeros. By default "exact", or what an
            artifact was saved with.
        device: where the lowered graph is to run; by default where the tensors of `qdq` are.

    Raises:
        ConfigError: an unknown or invalid backend, choice of `padded_outputs` or device.
        FxQuantError: the graph is at another stage; its tensors are on several devices, or on one that the backend has
            no kernels for; there is no memory left.
    """
    if padded_outputs is not None:
        check_padded_outputs(padded_outputs)
    chosen = load_backend(backend) if backend is not None else None
    failure = ""
    qdq = cast(Graph, entered(qdq))
    try:
        lowered = _each(_placed(qdq, device), lambda gm: _lower(gm, chosen, padded_outputs))
        release(lowered.graphs.values() if isinstance(lowered, Program) else [lowered])
        return lowered
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        failure = first_line(error)
    # Only here is what was lowered so far let go.
    gc.collect()
    raise FxQuantError(f"there is no memory left to lower the graph, which is as it was: {failure}")


def _placed(qdq: Graph, device: str | torch.device | None) -> Graph:
    """Return the graph with its tensors on a device: of copies where they are on another one."""
    if device is None:
        return qdq
    chosen = place.read_device(device)
    copied = _each(qdq, edit.clone)
    place.move(copied.graphs.values() if isinstance(copied, Program) else [copied], chosen)
    return copied


def _lower(qdq: fx.GraphModule, backend: Backend | None, padded_outputs: str | None) -> fx.GraphModule:
    device = _expect_stage(qdq, "lower", "converted", "fxquant.convert")
    chosen = backend or recorded_backend(qdq)
    origin = edit.clone(qdq)
    if device is not None:
        check_device(chosen.kernels, device)
        place.make_on(origin, device)
    if padded_outputs is not None:
        edit.mark(origin, padded_outputs=padded_outputs)
    gm = _with_kernels(origin, chosen, listed_passes(chosen.passes, chosen.source))
    _warn_of_padding(gm)
    return gm


def _with_kernels(qdq: fx.GraphModule, backend: Backend, listed: tuple[Pass, ...]) -> fx.GraphModule:
    gm = edit.clone(qdq)
    if backend.kernels in RUNNERS:
        RUNNERS[backend.kernels](gm)
    first = () if backend == recorded_backend(gm) else (Annotate(backend, None),)
    Pipeline((*first, Lower(backend), *listed)).run(gm)
    edit.mark(gm, stage="lowered", backend=backend.to_dict())
    keep(gm, qdq)
    return gm


def _warn_of_padding(gm: fx.GraphModule) -> None:
    """Say where a graph that should run without padding does not."""
    facts = edit.marks(gm)
    if facts.get("padded_outputs") != ZERO:
        return
    by_default = [] if "unpadded" in facts else [f"the backend {facts['backend']['name']!r} lists no pass 'unpad'"]
    for reason in facts.get("padded", by_default):
        part = "a part of the model" if "unpadded" in facts else "the model"
        text = f'padded_outputs = "zero": {part} runs on padding as with "exact": {reason}'
        warnings.warn(text, FxQuantWarning, stacklevel=6)  # whoever called `lower`


def unfused(lowered: fx.GraphModule) -> fx.GraphModule:
    """Return a lowered graph in which every claimed op is a kernel call of its own: no pass has joined or moved any.

    Its kernels compute what those of `lowered` do; only the backend's listed passes are left out.
    """
    return _with_kernels(edit.clone(portable(lowered)), recorded_backend(lowered), ())


def recorded_backend(gm: fx.GraphModule) -> Backend:
    """Return the backend that a graph was prepared or lowered for."""
    data = edit.marks(gm)["backend"]
    return read_backend(data, f"backend {data['name']!r} of the graph")


def _each(graph: Graph, verb: Callable[[fx.GraphModule], fx.GraphModule]) -> Graph:
    done = graph.map(verb) if isinstance(graph, Program) else verb(graph)
    return cast(Graph, done)  # a verb returns what it was given, a graph or a Program


def _expect_stage(gm: fx.GraphModule, verb: str, wanted: str, source: str) -> torch.device | None:
    """Return the device of a graph that is at the stage which `verb` takes; raise where it is not, or on two."""
    if not isinstance(gm, fx.GraphModule):
        raise FxQuantError(f"{verb} takes a graph from {source}, got a {type(gm).__name__}")
    stage = edit.marks(gm).get("stage")
    if stage != wanted:
        found = f"one that is {stage}" if stage else "a GraphModule that fxquant did not make"
        raise FxQuantError(f"{verb} takes a graph that is {wanted}, from {source}; got {found}")
    return place.device_of(gm)
