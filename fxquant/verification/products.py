"""The integer products of a Q/DQ graph, each by itself: what its kernel has to give, to the last integer.

A product is taken out of its graph with its real integer weight and the quantization of its activations, but without
what its kernel does afterwards: the weight's scale is 1, and there is no bias, activation or sum. Its result is then
S_x·Σ (q_x − Z)·q_w, from which the sums can be read back, as each is one rounding of S_x times an integer.
"""

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxquant.graph import edit
from fxquant.numerics import along
from fxquant.ops.base import read_constant
from fxquant.ops.cost import family
from fxquant.passes.claims import ClaimedSite, claimed_sites, erase_claims
from fxquant.passes.qdq_nodes import CHOOSE_QPARAMS, DEQUANTIZE, QUANTIZE

_QUANTIZING = (CHOOSE_QPARAMS, QUANTIZE, DEQUANTIZE, operator.getitem)
# Sums up to here are read back from float32 without doubt: twice as far, neighbours could round to one value.
LARGEST = 2**22


@dataclass(frozen=True)
class Product:
    """An integer product by itself.

    `graph` takes `inputs`, nodes of the graph that it was taken from, and returns one float32 tensor; `core` is the
    product's node in it. `roles` names the core's arguments.
    """

    name: str
    path: str
    op: str
    graph: fx.GraphModule
    core: fx.Node
    inputs: tuple[str, ...]
    roles: Mapping[int, str]

    @property
    def weight(self) -> Tensor | None:
        """The integers of the weight, None for a product of two activations."""
        found = next((self.core.args[at] for at, role in self.roles.items() if role == "weight"), None)
        constant = read_constant(found) if isinstance(found, fx.Node) else None
        return edit.get_tensor(self.graph, constant) if constant is not None else None


def products(gm: fx.GraphModule) -> Iterator[Product | str]:
    """Yield each claimed product of a Q/DQ graph, or why it has no integer sums."""
    for site in claimed_sites(gm):
        core = next((node for node in site.members if family(node)), site.anchor)
        edges = {edge.index: role for role, all_edges in site.edges.items() for edge in all_edges if edge.user is core}
        wide = _float_operand(site, core, edges)
        yield f"{site.claim.op} at {site.claim.path or 'the top'}: {wide}" if wide else _isolated(gm, site, core, edges)


def _float_operand(site: ClaimedSite, core: fx.Node, roles: Mapping[int, str]) -> str:
    for role in roles.values():
        spec = site.claim.specs.get(role)
        whole = spec is not None and spec.group_size is None and not spec.format.floating
        if role in ("x", "a", "b", "weight") and not whole:
            return f"{role} is not in integers, so that its kernel multiplies floats"
    return ""


def _isolated(gm: fx.GraphModule, site: ClaimedSite, core: fx.Node, roles: Mapping[int, str]) -> Product:
    copy = _Copy(gm)
    new = copy.call(core, without=[index for index, role in roles.items() if role == "bias"])
    copy.graph.output((new,))
    alone = fx.GraphModule(gm, copy.graph)
    for target in copy.unit:
        tensor = edit.get_tensor(alone, alone.graph.find_nodes(op="get_attr", target=target)[0])
        edit.set_tensor(alone, target, torch.ones_like(tensor))
    erase_claims(alone)
    named = {index: role for index, role in roles.items() if role != "bias"}
    return Product(site.claim.name, site.claim.path, site.claim.op, alone, new, tuple(copy.inputs), named)


class _Copy:
    """Copies a call with the Q/DQ nodes in front of it into a graph of its own; what stands before them is an input."""

    def __init__(self, gm: fx.GraphModule) -> None:
        self.gm, self.graph = gm, fx.Graph()
        self.copied: dict[fx.Node, fx.Node] = {}
        self.inputs: dict[str, fx.Node] = {}
        self.unit: set[str] = set()  # scales of constants, which are to be 1

    def call(self, node: fx.Node, without: list[int]) -> fx.Node:
        for source in node.all_input_nodes:
            if all(edit.arguments(node)[index] is not source for index in without):
                self._value(source)
        return self.graph.node_copy(node, self.copied.get)

    def _value(self, node: fx.Node) -> None:
        if node in self.copied:
            return
        if edit.is_constant(node):
            self.copied[node] = self.graph.node_copy(node)
        elif node.target in _QUANTIZING:
            for source in node.all_input_nodes:
                self._value(source)
            self.copied[node] = self.graph.node_copy(node, lambda each: self.copied[each])
            if node.target is DEQUANTIZE and edit.is_constant(node.args[0]):
                self.unit.add(str(node.args[1].target))  # type: ignore[union-attr]
        else:
            self.copied[node] = self.inputs[node.name] = self._input(node)

    def _input(self, node: fx.Node) -> fx.Node:
        """Return a placeholder behind those that there are."""
        last = next(reversed(self.inputs.values()), None)
        first = next(iter(self.graph.nodes), None)
        with self.graph.inserting_after(last) if last else self.graph.inserting_before(first):
            new = self.graph.placeholder(node.name)
        known = edit.info(node)
        edit.mark(new, value=known.to_dict() if known else None)
        return new


class Sums(fx.Interpreter):
    """Computes a product's sums in float64, which holds all of them, and the step S_x of its float32 result.

    Quantized values are handed on as q − Z; `quantized` keeps q of the activations.
    """

    def __init__(self, product: Product) -> None:
        super().__init__(product.graph)
        self.product = product
        self.step = torch.ones((), dtype=torch.float64)
        self.quantized: Tensor | None = None

    def of(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Return Σ (q_x − Z)·q_w in float64, of the shape of the product's result."""
        result: Tensor = self.run(*inputs)[0]
        return result

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return q − Z in float64 for a dequantize, and what the operator gives for any other call."""
        if target is not DEQUANTIZE:
            return super().call_function(target, args, kwargs)
        q, scale, zero_point, axis = args
        constant = self.product.weight is not None and q is self.product.weight
        if not constant:
            assert axis is None, "integer kernels take activations with one scale, or one a token"
            self.step = self.step * scale.double()
            self.quantized = q
        return q.double() - along(zero_point.double(), axis, q.ndim)
