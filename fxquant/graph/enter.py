"""`enter`: a graph of torch.compile becomes a captured graph of ATen calls that holds its parameters.

Dynamo's graphs are torch-level calls. Parameters and buffers are arguments like any other, and so are sizes that vary.
Here the calls are traced again to ATen (retrace.py); what belongs to a module is read by get_attr, a size from the
tensor whose size it is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._guards import detect_fake_mode

from fxquant.errors import CaptureError
from fxquant.graph import edit, structure
from fxquant.graph.calling import Leaf, Parameter
from fxquant.graph.retrace import retrace
from fxquant.graph.signature import Signature, SignatureCodeGen
from fxquant.graph.sources import described, path_of_input

_LEAF = {"kind": "leaf"}


@dataclass(frozen=True)
class Entered:
    """A captured graph, and how a call with Dynamo's arguments becomes a call of it.

    `constants` maps the positions of arguments to the attributes by which the graph reads them; `inputs` are the
    positions of the other arguments, by the names of the graph's placeholders. Those in `lengths` are integers, each of
    which travels as the length of an empty tensor.
    """

    graph: fx.GraphModule
    constants: Mapping[int, str]
    inputs: Mapping[str, int]
    lengths: frozenset[str]

    def keywords(self, args: Sequence[Any]) -> dict[str, Any]:
        """Return the graph's keyword arguments for Dynamo's arguments."""
        return {name: carrier(args[at]) if name in self.lengths else args[at] for name, at in self.inputs.items()}

    def holding(self, args: Sequence[Any]) -> fx.GraphModule:
        """Return the graph with the parameters and buffers that are among Dynamo's arguments."""
        gm = edit.clone(self.graph)
        for at, name in self.constants.items():
            edit.set_tensor(gm, name, args[at])
        return gm


def enter(gm: fx.GraphModule, tensors: Sequence[Any]) -> Entered:
    """Return the captured form of a graph that Dynamo hands to a backend; `gm` is left as it is.

    Args:
        gm: a graph of torch-level calls with flat placeholders.
        tensors: Dynamo's example inputs, which hold the parameters and buffers themselves.

    Raises:
        CaptureError: the graph trains, computes under autocast, or takes what is neither tensor nor integer.
    """
    given = gm.graph.find_nodes(op="placeholder")
    traced = retrace(gm, [node.meta["example_value"] for node in given])
    owned = {at for at, node in enumerate(given) if _is_owned(node, tensors[at])} - _written(traced)
    return _Entry(given, traced, tensors).build(owned)


def _is_owned(node: fx.Node, tensor: Any) -> bool:
    """Say whether an input is a parameter or a buffer: Dynamo marks what keeps its address from call to call."""
    known = node.meta.get("tensor_dict") or {}
    marked = bool(known.get("_dynamo_static_input_type"))
    return isinstance(tensor, nn.Parameter) or (isinstance(tensor, Tensor) and marked)


def _written(traced: fx.GraphModule) -> set[int]:
    """Return the positions of the inputs that the graph writes to, through views too."""
    memory = {node: {at} for at, node in enumerate(traced.graph.find_nodes(op="placeholder"))}
    written: set[int] = set()
    for node in traced.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        for value, argument in zip(node.args, schema.arguments if schema else (), strict=False):
            if argument.alias_info is not None and isinstance(value, fx.Node):
                memory[node] = memory.get(node, set()) | memory.get(value, set())
                written |= memory.get(value, set()) if argument.alias_info.is_write else set()
    return written


class _Entry:
    """The copy of a traced graph in which the tensors of modules are attributes."""

    def __init__(self, given: Sequence[fx.Node], traced: fx.GraphModule, tensors: Sequence[Any]) -> None:
        self.given, self.traced, self.tensors = given, traced, tensors
        self.old = traced.graph.find_nodes(op="placeholder")
        self.gm = fx.GraphModule(nn.Module(), fx.Graph(), class_name="EnteredGraph")
        self.copies: dict[fx.Node, fx.Node] = {}
        self.constants: dict[int, str] = {}
        self.inputs: dict[str, int] = {}
        self.lengths: set[str] = set()

    def build(self, owned: set[int]) -> Entered:
        """Return the copy, with the arguments at the positions `owned` as its own tensors."""
        used = [at for at, node in enumerate(self.old) if node.users]
        tensors = [at for at in used if at not in owned and isinstance(self.old[at].meta["val"], Tensor)]
        for at in tensors:
            self.copies[self.old[at]] = described(self.old[at], self._placeholder(at))
        sizes = {at: self._place(at, tensors) for at in used if at not in owned and at not in tensors}
        carriers = {at: self._carrier(at) for at, place in sizes.items() if place is None}
        for at, place in sizes.items():
            source, axis = place or (carriers[at], 0)
            size = self.gm.graph.call_function(torch.ops.aten.sym_size.int, (source, axis))
            self.copies[self.old[at]] = described(self.old[at], size)
        for at in sorted(owned.intersection(used)):
            self.constants[at] = edit.free_target(self.gm, path_of_input(self.given[at]))
            self._read(self.old[at], self.constants[at], self.tensors[at])
        self._copy_calls()
        _sign(self.gm)
        edit.mark(self.gm, stage="captured", capture={"rung": "torch.compile"})
        self.gm.eval()
        return Entered(self.gm, self.constants, self.inputs, frozenset(self.lengths))

    def _placeholder(self, at: int) -> fx.Node:
        node = self.gm.graph.placeholder(self.given[at].name)
        node.target = node.name
        self.inputs[node.name] = at
        return node

    def _place(self, at: int, tensors: Sequence[int]) -> tuple[fx.Node, int] | None:
        """Return the tensor input, as copied, and the axis that have the size which is argument `at`."""
        size = self.old[at].meta["val"]
        if not isinstance(size, torch.SymInt):
            found = f"the compiled code takes {self.given[at].name!r}, a {type(size).__name__}, from outside"
            raise CaptureError(f"{found}: give it as a tensor, or as a constant")
        for each in tensors:
            for axis, extent in enumerate(self.old[each].meta["val"].shape):
                if isinstance(extent, torch.SymInt) and extent.node.expr == size.node.expr:
                    return self.copies[self.old[each]], axis
        return None

    def _carrier(self, at: int) -> fx.Node:
        node = self._placeholder(at)
        mode = detect_fake_mode([each.meta["val"] for each in self.old])
        assert mode is not None, "Dynamo describes the inputs of its graphs by fake tensors"
        with mode:
            node.meta["val"] = carrier(self.old[at].meta["val"])
        self.lengths.add(node.name)
        return node

    def _read(self, old: fx.Node, name: str, tensor: Tensor) -> None:
        edit.set_tensor(self.gm, name, tensor)
        self.copies[old] = described(old, self.gm.graph.get_attr(name), name.rpartition(".")[0])

    def _copy_calls(self) -> None:
        for node in self.traced.graph.nodes:
            if node.op == "output":
                leaves = node.args[0] if isinstance(node.args[0], (tuple, list)) else (node.args[0],)
                self.gm.graph.output(fx.map_arg(tuple(leaves), self.copies.__getitem__))
            elif node.op == "get_attr":
                held = getattr(self.traced, str(node.target))
                if not isinstance(held, Tensor):
                    raise CaptureError(f"the compiled code holds {node.target!r}, a {type(held).__name__}: no tensor")
                self._read(node, edit.free_target(self.gm, str(node.target)), held)
            elif node.op != "placeholder":
                self.copies[node] = described(node, self.gm.graph.node_copy(node, self.copies.__getitem__))
        self.gm.graph.eliminate_dead_code()


def carrier(size: Any) -> Tensor:
    """Return an empty tensor whose length is an integer, so that graphs, whose inputs are tensors, can be given it."""
    return torch.empty(size, 0)


def _sign(gm: fx.GraphModule) -> None:
    """Let the graph be called by the names of its placeholders, and return a tuple."""
    nodes = gm.graph.find_nodes(op="placeholder")
    names = [str(node.target) for node in nodes]
    symbols: dict[str, str] = {}
    leaves = tuple(
        Leaf(name, value.dtype, tuple(_size(each, symbols) for each in value.shape))
        for name, value in zip(names, (node.meta["val"] for node in nodes), strict=True)
    )
    output = gm.graph.output_node()
    values = output.args[0]
    assert isinstance(values, tuple), "the output was made above"
    items = [_LEAF if isinstance(value, fx.Node) else structure.describe(value)[1] for value in values]
    output.args = (tuple(value for value in values if isinstance(value, fx.Node)),)
    inputs = {"kind": "dict", "keys": names, "items": [_LEAF] * len(names)}
    signature = Signature(tuple(map(Parameter, names)), inputs, leaves, {"kind": "tuple", "items": items})
    gm.graph.set_codegen(SignatureCodeGen(signature))
    gm.recompile()


def _size(size: Any, symbols: dict[str, str]) -> int | str:
    return size if isinstance(size, int) else symbols.setdefault(str(size), f"d{len(symbols)}")
