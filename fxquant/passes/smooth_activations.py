"""Move the outlier channels of activations to the weights of the linears that read them, before either is quantized.

x·Wᵀ = (x/s)·(W·s)ᵀ: what an observer of the kind `smooth` asks for (observers/smooth.py). The division goes into the
weight and bias of the normalization that computes x where the linears alone read it, as in models that normalize in
front of a layer; elsewhere it is a product with a constant.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from fxquant.graph import edit
from fxquant.graph.pattern import Edge
from fxquant.observers.smooth import Smooth
from fxquant.passes.claims import Reason, claimed_sites, write_reason

aten = torch.ops.aten
# Where the weight and, if it has one, the bias of a normalization stand among its arguments.
_NORMS: dict[object, tuple[int, ...]] = {aten.layer_norm.default: (2, 3), aten.rms_norm.default: (2,)}


@dataclass(frozen=True)
class SmoothActivations:
    """Divide what `smooth` observers saw by a factor for each channel, and multiply the weights by it.

    Numbers are those of the float graph but for roundings of single products. An activation stays as it is where
    something else than linears with constant weights reads what is quantized of it.
    """

    name: ClassVar[str] = "smooth_activations"
    after: ClassVar[tuple[str, ...]] = ("observe",)

    def apply(self, gm: fx.GraphModule) -> int:
        """Return how many activations were divided."""
        return sum(_smooth(gm, node, edges) for node, edges in _observed(gm).items())


def seen_by(gm: fx.GraphModule, node: fx.Node) -> Smooth | None:
    """Return the `smooth` observer that a node calls, if it saw anything."""
    module = gm.get_submodule(str(node.target)) if node.op == "call_module" else None
    return module if isinstance(module, Smooth) and module.observed else None


def _observed(gm: fx.GraphModule) -> dict[fx.Node, list[tuple[Edge, Edge]]]:
    """Return the calls of observers that saw an activation of linears alone, with where these read it and a weight."""
    found: dict[fx.Node, list[tuple[Edge, Edge]]] = {}
    for site in claimed_sites(gm):
        for edge in site.edges.get("x", ()):
            weights = site.edges.get("weight", ())
            if len(weights) == 1 and seen_by(gm, edge.source) and edit.is_constant(weights[0].source):
                found.setdefault(edge.source, []).append((edge, weights[0]))
    return {node: edges for node, edges in found.items() if {edge.user for edge, _ in edges} == set(node.users)}


def _smooth(gm: fx.GraphModule, call: fx.Node, edges: list[tuple[Edge, Edge]]) -> bool:
    observer = seen_by(gm, call)
    assert observer is not None, "only such calls were found"
    weights = [edit.get_tensor(gm, weight.source) for _, weight in edges]
    if any(weight.ndim != 2 or weight.shape[1] != len(observer.low) for weight in weights):
        return False
    factors = observer.factors(torch.stack([weight.abs().amax(0) for weight in weights]).amax(0))
    if factors is None:
        return False
    _divide(gm, call, factors)
    for (_, edge), weight in zip(edges, weights, strict=True):
        name = f"{edge.source.target}_smooth"
        edit.set_argument(edge.user, edge.index, edit.add_constant(gm, name, weight * factors, edge.user))
    target = edit.free_target(gm, f"{call.target}_smooth")
    gm.add_submodule(target, observer.divided(factors))
    call.target = target
    return True


def _divide(gm: fx.GraphModule, call: fx.Node, factors: Tensor) -> None:
    """Let an observer read its activation divided by the factors."""
    (source,) = call.all_input_nodes
    places = _NORMS.get(source.target, ())
    operands = [source.args[place] for place in places]
    if places and len(source.users) == 1 and edit.is_constant(operands[0]):
        for place, operand in zip(places, operands, strict=True):
            if isinstance(operand, fx.Node):
                divided = edit.get_tensor(gm, operand) / factors
                constant = edit.add_constant(gm, f"{operand.target}_smooth", divided, source)
                edit.set_argument(source, place, constant)
        return
    path = edit.path_of(source)
    inverse = edit.add_constant(gm, f"{path}.smooth".lstrip("."), 1 / factors, call)
    with gm.graph.inserting_before(call):
        product = edit.call(gm.graph, aten.mul.Tensor, (source, inverse), like=source, value=edit.info(source))
    write_reason(product, Reason.FLOAT_OP, "moves outliers of an activation to the weights behind it")
    edit.set_argument(call, 0, product)
