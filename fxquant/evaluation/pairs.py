"""Two graphs of one model, the layers that both compute, and the sums of their errors over batches."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from fxquant.errors import DataError
from fxquant.evaluation.error_sums import ErrorSums
from fxquant.evaluation.layers import Call, Layer, call_leaves, common_layers, comparable, output_names, run_layers
from fxquant.ledger import read_ledger


@dataclass
class Pair:
    """A reference and a candidate, as they are and with a node for each layer.

    `errors` are those of `layers`, `ends` those of the outputs called `names`; `flops` are all that the candidate does.
    """

    graphs: tuple[fx.GraphModule, fx.GraphModule]
    comparable: tuple[fx.GraphModule, fx.GraphModule]
    layers: tuple[Layer, ...]
    names: list[str]
    flops: float
    errors: list[ErrorSums]
    ends: list[ErrorSums]

    def add(self, call: Call) -> None:
        """Run both graphs on a call and add what their layers and outputs give to the sums.

        Raises:
            InputError: the graphs were not captured for such a call.
            DataError: results differ in shape.
        """
        self._add_layers(call)
        self._add_outputs(call)

    def _add_layers(self, call: Call) -> None:
        wanted = ({layer.reference for layer in self.layers}, {layer.candidate for layer in self.layers})
        reference, candidate = (
            run_layers(gm, names, call_leaves(gm, call)) for gm, names in zip(self.comparable, wanted, strict=True)
        )
        for layer, each in zip(self.layers, self.errors, strict=True):
            both = reference.by_node[layer.reference], candidate.by_node[layer.candidate]
            _check_shapes(layer.row.module_path or layer.candidate, *both)
            each.add(*both)

    def _add_outputs(self, call: Call) -> None:
        """Run both graphs as they are, fused kernels and all, and add their outputs to the sums."""
        outputs = (run_layers(gm, set(), call_leaves(gm, call)).outputs for gm in self.graphs)
        for number, (left, right) in enumerate(zip(*outputs, strict=True)):
            if isinstance(left, Tensor) and left.is_floating_point():
                _check_shapes(f"output {number}", left, right)
                self.ends[number].add(left, right)


def pair(reference: Any, candidate: Any) -> Pair:
    """Return two graphs as a pair, with nothing in the sums.

    Raises:
        FxQuantError: one of them is no graph of fxquant's.
        DataError: they return different things.
    """
    both = (comparable(reference, "reference"), comparable(candidate, "candidate"))
    layers, names = common_layers(*both), output_names(both[0])
    if layers and names != output_names(both[1]):  # without a layer in common, that is what is wrong
        raise DataError(
            f"the reference returns {names}, the candidate {output_names(both[1])}: give graphs of one model"
        )
    flops = float(sum(row.flops for row in read_ledger(both[1]).rows))
    errors, ends = ([ErrorSums() for _ in each] for each in (layers, names))
    return Pair((reference, candidate), both, layers, names, flops, errors, ends)


def _check_shapes(where: str, left: Tensor, right: Tensor) -> None:
    if left.shape != right.shape:
        shapes = f"{tuple(left.shape)} in the reference and {tuple(right.shape)} in the candidate"
        raise DataError(f"{where} has shape {shapes}: give graphs of one model")
