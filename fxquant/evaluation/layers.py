"""The layers that two graphs of one model have in common, and their values when the graphs run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from fxquant.errors import FxQuantError
from fxquant.graph import edit, structure
from fxquant.graph.signature import signature_of
from fxquant.ledger import Row, read_ledger
from fxquant.numerics import dequantize, quantize_to
from fxquant.observers import Observer
from fxquant.passes.canonicalize import canonicalize
from fxquant.passes.qdq_nodes import QUANTIZE
from fxquant.spec import QParams
from fxquant.stages import unfused

Call = tuple[tuple[Any, ...], dict[str, Any]]  # positional arguments, and those by name


@dataclass(frozen=True)
class Layer:
    """One op that both graphs compute: its ledger row in the candidate, and the node of its result in each graph."""

    row: Row
    reference: str
    candidate: str


def comparable(gm: object, role: str) -> fx.GraphModule:
    """Return `gm` with a node for each layer: in canonical form if it is fresh from capture, unfused if it is lowered.

    Raises:
        FxQuantError: it is no graph of fxquant's; the text begins with `role`.
    """
    if not isinstance(gm, fx.GraphModule) or "stage" not in edit.marks(gm):
        found = "a GraphModule that fxquant did not make" if isinstance(gm, fx.GraphModule) else type(gm).__name__
        raise FxQuantError(
            f"{role} is {found}: expected a graph from fxquant.capture, prepare, convert, lower, quantize or load"
        )
    match edit.marks(gm)["stage"]:
        case "captured":
            return canonicalize(gm)
        case "lowered":
            return unfused(gm)
    return gm


def common_layers(reference: fx.GraphModule, candidate: fx.GraphModule) -> tuple[Layer, ...]:
    """Return the ops that the candidate's ledger shows and the reference computes under the same canonical name.

    They are claimed ops and matrix arithmetic, in the order of the candidate.
    """
    theirs = {_canonical_name(node): node.name for node in reference.graph.nodes if node.op == "call_function"}
    rows = {row.node: row for row in read_ledger(candidate).rows}
    layers = []
    for node in candidate.graph.nodes:
        row, name = rows.get(node.name), _canonical_name(node)
        if row is not None and name in theirs and (row.family or "claim" in edit.marks(node)):
            layers.append(Layer(row, theirs[name], node.name))
    return tuple(layers)


def _canonical_name(node: fx.Node) -> str:
    claim: Mapping[str, Any] = edit.marks(node).get("claim", {})
    return str(claim.get("name", node.name))


def output_names(gm: fx.GraphModule) -> list[str]:
    """Return a name for each leaf of the model's output, "output" for an output that is one tensor."""
    return [name or "output" for name in structure.names(signature_of(gm).outputs)]


def call_leaves(gm: fx.GraphModule, call: Call) -> tuple[Any, ...]:
    """Return the graph's inputs for a call.

    Raises:
        InputError: the graph was not captured for such a call.
    """
    return signature_of(gm).flatten(*call)


@dataclass(frozen=True)
class Values:
    """What one run of a graph gave: float values by node name, and the leaves of the output."""

    by_node: Mapping[str, Tensor] = field(default_factory=dict)
    outputs: Sequence[Any] = ()


def run_layers(gm: fx.GraphModule, wanted: set[str], leaves: tuple[Any, ...]) -> Values:
    """Run `gm` and keep the values of the nodes named in `wanted`, in float.

    A result that the graph hands on in 8 bits comes with that rounding, whether its kernel or a Q/DQ node does it, so
    that lowered and Q/DQ graphs compare alike. Observers are passed by: they see nothing of this.
    """
    watcher = _Watcher(gm, wanted)
    with torch.no_grad():
        outputs = watcher.run(*leaves, enable_io_processing=False)
    return Values(watcher.kept, list(outputs))


class _Watcher(fx.Interpreter):
    """Runs a graph node by node and keeps some of the values."""

    def __init__(self, gm: fx.GraphModule, wanted: set[str]) -> None:
        super().__init__(gm)
        self.wanted = wanted
        self.kept: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Return the value of a node, keeping it where it is wanted."""
        value = super().run_node(n)
        if n.name in self.wanted:
            self.kept[n.name] = self._float(n, value)
        return value

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what a submodule gives; an observer hands its input on."""
        if isinstance(self.fetch_attr(str(target)), Observer):
            return args[0]
        return super().call_module(target, args, kwargs)

    def _float(self, node: fx.Node, value: Tensor) -> Tensor:
        targets = edit.marks(node).get("requantized")
        if targets is not None:
            return dequantize(value, QParams(*map(self.fetch_attr, targets)))
        follower = _requantize(node)
        if follower is None:
            return value
        _, scale, zero_point, _, qmin, qmax, dtype = follower.args
        qparams = QParams(*(self.fetch_attr(str(each.target)) for each in (scale, zero_point)))  # type: ignore[union-attr]
        return dequantize(quantize_to(value, qparams, qmin, qmax, dtype), qparams)  # type: ignore[arg-type]


def _requantize(node: fx.Node) -> fx.Node | None:
    """Return the static per-tensor quantize of a Q/DQ graph that alone reads `node` and that its kernel would do."""
    claim: Mapping[str, Any] = edit.marks(node).get("claim", {"specs": {}})
    users = list(node.users)
    if "output" not in claim["specs"] or len(users) != 1 or users[0].target is not QUANTIZE:
        return None
    _, scale, zero_point, axis = users[0].args[:4]
    return users[0] if edit.is_constant(scale) and edit.is_constant(zero_point) and axis is None else None
