"""Where a quantized graph departs from its reference: SQNR layer by layer, worst first, and of the outputs.

A layer's noise includes what came in with its inputs: the fall from one layer to the next is the layer's own part.
Kernels that run several layers at once keep no layer's result, so the layers of a lowered graph are those of the same
kernels one by one; the outputs are the lowered graph's own.
"""

import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate
from torch import Tensor, fx

from fxquant.errors import DataError, InputError
from fxquant.evaluation.error_sums import ErrorSums
from fxquant.evaluation.pairs import Pair, pair
from fxquant.evaluation.program_calls import CallRecorder
from fxquant.generation import cache
from fxquant.graph.calling import read_call
from fxquant.ledger import Row
from fxquant.program import Program

Graphs = fx.GraphModule | Program
_ALONE = ""  # the name of a graph that is no part of a program


@dataclass(frozen=True, kw_only=True)
class LayerError:
    """How far one layer's result is off: `sqnr` in dB, inf where equal; `share` of the model's FLOPs, 0 to 1."""

    module_path: str
    op: str
    dtype: str
    kernel: str
    sqnr: float
    share: float


@dataclass(frozen=True, kw_only=True)
class OutputError:
    """How far one floating-point output of the model is off; `cosine` is between all its values as one vector."""

    name: str
    sqnr: float
    cosine: float


@dataclass(frozen=True)
class Comparison:
    """The errors of a candidate against its reference: `rows` worst first, `outputs` in the model's order."""

    rows: tuple[LayerError, ...]
    outputs: tuple[OutputError, ...]
    batches: int

    def to_table(self, limit: int | None = None) -> str:
        """Return the table as text: the `limit` worst layers (None: all), then the outputs."""
        head = ("module", "op", "dtype", "kernel", "SQNR dB", "FLOPs")
        body = [
            (row.module_path or ".", row.op, row.dtype, row.kernel, _decibel(row.sqnr), f"{row.share:.1%}")
            for row in self.rows[:limit]
        ]
        outputs = [(each.name, _decibel(each.sqnr), f"{each.cosine:.6f}") for each in self.outputs]
        hidden = len(self.rows) - len(body)
        note = f"… and {hidden} layers with less error\n" if hidden else ""
        layers = tabulate(body, head, disable_numparse=True, colalign=(*["left"] * 4, "right", "right"))
        return f"{layers}\n{note}\n{tabulate(outputs, ('output', 'SQNR dB', 'cosine'), disable_numparse=True)}"

    def to_json(self) -> str:
        """Return rows and outputs as JSON; a number that JSON cannot hold, such as the SQNR of equal values, is
        null.
        """
        data = {
            "batches": self.batches,
            "rows": [_finite(vars(row)) for row in self.rows],
            "outputs": [_finite(vars(each)) for each in self.outputs],
        }
        return json.dumps(data, indent=1)


def compare(reference: Graphs, candidate: Graphs, batches: Iterable[Any]) -> Comparison:
    """Run two graphs of one model on the same batches and return the error of each layer, worst first.

    Of two programs each graph is compared by itself, called as the reference calls it: what is off in one is no part
    of the next. Outputs are called by their graph's name then, and the tensors of caches, which are layers' results,
    are not among them.

    Args:
        reference: a graph or Program of any stage, usually the captured one.
        candidate: one of the same model at any stage, usually converted or lowered.
        batches: an iterable of calls of the model, each a dict of keyword arguments, a tuple or list of positional
            ones, or a tensor. No batch is kept, and memory holds the layers of one.

    Raises:
        DataError: there are no batches, or the graphs are not of one model.
        InputError: a batch is no call, or none that the graphs were captured for.
        ConfigError: the reference is a program without the model whose own code calls its graphs.
        FxQuantError: one of the two is no graph of fxquant's.
    """
    pairs = _pairs(reference, candidate)
    if not any(each.layers for each in pairs.values()):
        raise DataError(
            "the graphs have no layer in common: expected two graphs of one model, captured with the same arguments"
        )
    recorder = CallRecorder(reference) if isinstance(reference, Program) else None
    count = 0
    for index, batch in enumerate(_iterable(batches)):
        try:
            call = read_call(batch)
            for name, each in recorder.calls(call) if recorder else [(_ALONE, call)]:
                pairs[name].add(each)
        except (InputError, DataError) as error:
            raise type(error)(f"batch {index}: {error}") from None
        count += 1
    if count == 0:
        raise DataError("batches is empty: a comparison needs at least one batch; an iterator serves one call")
    return Comparison(tuple(sorted(_rows(pairs.values()), key=_badness)), tuple(_outputs(pairs)), count)


def _pairs(reference: Graphs, candidate: Graphs) -> dict[str, Pair]:
    """Return the graphs of both by name."""
    if not isinstance(reference, Program) or not isinstance(candidate, Program):
        return {_ALONE: pair(reference, candidate)}  # which says what is no graph
    if reference.graphs.keys() != candidate.graphs.keys():
        names = f"{', '.join(reference.graphs)}, and the candidate of {', '.join(candidate.graphs)}"
        raise DataError(f"the reference is a program of {names}: give programs of one model")
    return {name: pair(gm, candidate.graphs[name]) for name, gm in reference.graphs.items()}


def _iterable(batches: Any) -> Iterable[Any]:
    if isinstance(batches, Mapping | Tensor | str) or not isinstance(batches, Iterable):
        raise DataError(
            f"batches is one {type(batches).__name__}: expected an iterable of batches; put one into a list"
        )
    return batches


def _rows(pairs: Collection[Pair]) -> Iterator[LayerError]:
    total = sum(each.flops for each in pairs) or 1.0
    for each in pairs:
        for layer, sums in zip(each.layers, each.errors, strict=True):
            if sums.values:  # a graph that no batch needed has none
                yield _layer_error(layer.row, sums, layer.row.flops / total)


def _layer_error(row: Row, sums: ErrorSums, share: float) -> LayerError:
    return LayerError(
        module_path=row.module_path,
        op=row.op,
        dtype=row.dtype,
        kernel=row.kernel or row.code,
        sqnr=sums.sqnr,
        share=share,
    )


def _outputs(pairs: Mapping[str, Pair]) -> Iterator[OutputError]:
    for graph, each in pairs.items():
        for name, sums in zip(each.names, each.ends, strict=True):
            if sums.values and not (graph and any(kind in name for kind in cache.KINDS)):
                yield OutputError(name=f"{graph}.{name}" if graph else name, sqnr=sums.sqnr, cosine=sums.cosine)


def _badness(row: LayerError) -> float:
    return -math.inf if math.isnan(row.sqnr) else row.sqnr


def _decibel(value: float) -> str:
    return "equal" if value == math.inf else f"{value:.1f}"


def _finite(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in fields.items()}
