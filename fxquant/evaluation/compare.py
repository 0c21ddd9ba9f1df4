"""Where a quantized graph departs from its reference: SQNR layer by layer, worst first, and of the outputs.

A layer's noise includes what came in with its inputs: the fall from one layer to the next is the layer's own part.
Kernels that run several layers at once keep no layer's result, so the layers of a lowered graph are those of the same
kernels one by one; the outputs are the lowered graph's own.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate
from torch import Tensor, fx

from fxquant.errors import DataError, InputError
from fxquant.evaluation.error_sums import ErrorSums
from fxquant.evaluation.layers import Layer, call_leaves, common_layers, comparable, output_names, run_layers


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


def compare(reference: fx.GraphModule, candidate: fx.GraphModule, batches: Iterable[Any]) -> Comparison:
    """Run two graphs of one model on the same batches and return the error of each layer, worst first.

    Args:
        reference: a graph of any stage, usually the captured one.
        candidate: a graph of the same model at any stage, usually converted or lowered.
        batches: an iterable of calls of the model, each a dict of keyword arguments, a tuple or list of positional
            ones, or a tensor. No batch is kept, and memory holds the layers of one.

    Raises:
        DataError: there are no batches, one is of another type, or the graphs are not of one model.
        InputError: a batch is not a call that the graphs were captured for.
        FxQuantError: one of the two is no graph of fxquant's.
    """
    pair = (comparable(reference, "reference"), comparable(candidate, "candidate"))
    layers = common_layers(*pair)
    names = output_names(pair[0])
    if names != output_names(pair[1]):
        raise DataError(
            f"the reference returns {names}, the candidate {output_names(pair[1])}: give graphs of one model"
        )
    sums = [ErrorSums() for _ in layers]
    ends = [ErrorSums() for _ in names]
    count = 0
    for index, batch in enumerate(_iterable(batches)):
        try:
            _add_layers(pair, layers, sums, batch)
            _add_outputs((reference, candidate), ends, batch)
        except (InputError, DataError) as error:
            raise type(error)(f"batch {index}: {error}") from None
        count += 1
    if count == 0:
        raise DataError("batches is empty: a comparison needs at least one batch; an iterator serves one call")
    rows = [_layer_error(layer, each) for layer, each in zip(layers, sums, strict=True)]
    outputs = (OutputError(name=n, sqnr=e.sqnr, cosine=e.cosine) for n, e in zip(names, ends, strict=True) if e.values)
    return Comparison(tuple(sorted(rows, key=_badness)), tuple(outputs), count)


def _iterable(batches: Any) -> Iterable[Any]:
    if isinstance(batches, Mapping | Tensor | str) or not isinstance(batches, Iterable):
        raise DataError(
            f"batches is one {type(batches).__name__}: expected an iterable of batches; put one into a list"
        )
    return batches


def _add_layers(
    pair: tuple[fx.GraphModule, fx.GraphModule], layers: tuple[Layer, ...], sums: list[ErrorSums], batch: object
) -> None:
    """Run both graphs on one batch and add what their layers give to the sums."""
    reference = run_layers(pair[0], {layer.reference for layer in layers}, call_leaves(pair[0], batch))
    candidate = run_layers(pair[1], {layer.candidate for layer in layers}, call_leaves(pair[1], batch))
    for layer, each in zip(layers, sums, strict=True):
        both = reference.by_node[layer.reference], candidate.by_node[layer.candidate]
        _check_shapes(layer.row.module_path or layer.candidate, *both)
        each.add(*both)


def _add_outputs(graphs: tuple[fx.GraphModule, fx.GraphModule], sums: list[ErrorSums], batch: object) -> None:
    """Run both graphs as they are, fused kernels and all, and add their outputs to the sums."""
    outputs = (run_layers(gm, set(), call_leaves(gm, batch)).outputs for gm in graphs)
    for number, (left, right) in enumerate(zip(*outputs, strict=True)):
        if isinstance(left, Tensor) and left.is_floating_point():
            _check_shapes(f"output {number}", left, right)
            sums[number].add(left, right)


def _check_shapes(where: str, left: Tensor, right: Tensor) -> None:
    if left.shape != right.shape:
        shapes = f"{tuple(left.shape)} in the reference and {tuple(right.shape)} in the candidate"
        raise DataError(f"{where} has shape {shapes}: give graphs of one model")


def _layer_error(layer: Layer, sums: ErrorSums) -> LayerError:
    row = layer.row
    return LayerError(
        module_path=row.module_path,
        op=row.op,
        dtype=row.dtype,
        kernel=row.kernel or row.code,
        sqnr=sums.sqnr,
        share=layer.share,
    )


def _badness(row: LayerError) -> float:
    return -math.inf if math.isnan(row.sqnr) else row.sqnr


def _decibel(value: float) -> str:
    return "equal" if value == math.inf else f"{value:.1f}"


def _finite(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in fields.items()}
