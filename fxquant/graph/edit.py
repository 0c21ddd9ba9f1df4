"""The only place that mutates graphs and node metadata.

Every fxquant graph keeps its own facts about a node as JSON-able data in `node.meta["fxquant"]`, and about the whole
graph in `gm.meta["fxquant"]`. Copies of a graph share these dicts, so they are replaced, never changed in place.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx

from fxquant.graph.hints import hint_of

KEY = "fxquant"


@dataclass(frozen=True)
class TensorInfo:
    """What is known of a node's tensor: dtype, the shape in the example, and which dimensions may vary."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    dynamic: tuple[bool, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "dtype": str(self.dtype).removeprefix("torch."),
            "shape": list(self.shape),
            "dynamic": list(self.dynamic),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "TensorInfo":
        return cls(getattr(torch, data["dtype"]), tuple(data["shape"]), tuple(data["dynamic"]))


def marks(holder: fx.Node | fx.GraphModule) -> dict[str, Any]:
    """Return fxquant's own facts about a node or a graph; treat the dict as read-only."""
    found: dict[str, Any] = holder.meta.get(KEY, {})
    return found


def mark(holder: fx.Node | fx.GraphModule, **facts: Any) -> None:
    """Add JSON-able facts to a node or a graph; a fact of None removes the key."""
    merged = {**marks(holder), **facts}
    holder.meta[KEY] = {key: value for key, value in merged.items() if value is not None}


def info(node: fx.Node) -> TensorInfo | None:
    """Return what is known of the tensor that `node` computes, or None where it computes no single tensor."""
    value = node.meta.get("val")
    if isinstance(value, Tensor):
        return TensorInfo(value.dtype, *_hints(value.shape))
    stored = marks(node).get("value")
    return TensorInfo.from_dict(stored) if stored is not None else None


def _hints(shape: Sequence[Any]) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    dynamic = tuple(not isinstance(size, int) for size in shape)
    return tuple(size if isinstance(size, int) else hint_of(size) for size in shape), dynamic


def path_of(node: fx.Node) -> str:
    """Return the path of the module that `node` came from, "" for the model itself."""
    return str(marks(node).get("path", ""))


def clone(gm: fx.GraphModule) -> fx.GraphModule:
    """Return a graph that can be edited apart from `gm` but shares its tensors."""
    graph = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    result = graph.graph_copy(gm.graph, mapping, return_output_node=True)
    assert isinstance(result, tuple), "a captured graph has an output node"
    value, old_output = result
    graph.output(value).meta = dict(old_output.meta)
    graph.set_codegen(gm.graph._codegen)
    copy = fx.GraphModule(gm, graph, class_name=gm.__class__.__name__)
    copy.meta = dict(gm.meta)
    copy.eval()
    return copy


def get_tensor(gm: fx.GraphModule, node: fx.Node) -> Tensor:
    """Return the parameter or buffer that a get_attr node reads."""
    holder: Any = gm
    for part in str(node.target).split("."):
        holder = getattr(holder, part)
    assert isinstance(holder, Tensor), f"{node.target} is no tensor"
    return holder


def constants(gm: fx.GraphModule) -> dict[str, Tensor]:
    """Return every parameter and buffer that a graph reads, by its dotted path."""
    return {str(node.target): get_tensor(gm, node) for node in gm.graph.nodes if is_constant(node)}


def is_constant(node: object) -> bool:
    """Say whether `node` reads a parameter or buffer."""
    return isinstance(node, fx.Node) and node.op == "get_attr"


def set_tensor(gm: fx.GraphModule, target: str, tensor: Tensor) -> None:
    """Store `tensor` as the buffer at the dotted path `target`, making the modules on the way; outside autograd."""
    *parents, leaf = target.split(".")
    holder: torch.nn.Module = gm
    for part in parents:
        if not isinstance(getattr(holder, part, None), torch.nn.Module):
            setattr(holder, part, torch.nn.Module())
        holder = getattr(holder, part)
    if isinstance(holder._parameters.get(leaf), Tensor):
        del holder._parameters[leaf]
    plain = type(tensor) is Tensor and not tensor.requires_grad
    holder.register_buffer(leaf, tensor if plain else tensor.detach())


def free_target(gm: fx.GraphModule, wanted: str) -> str:
    """Return `wanted`, or `wanted_1`, `wanted_2`, … where that attribute path is taken."""
    target, count = wanted, 0
    while _is_taken(gm, target):
        count += 1
        target = f"{wanted}_{count}"
    return target


def _is_taken(gm: fx.GraphModule, target: str) -> bool:
    holder: object = gm
    for part in target.split("."):
        if not hasattr(holder, part):
            return False
        holder = getattr(holder, part)
    return True


def add_constant(gm: fx.GraphModule, wanted: str, tensor: Tensor, before: fx.Node) -> fx.Node:
    """Store `tensor` as a new buffer named like `wanted` and return a get_attr node for it placed before `before`."""
    target = free_target(gm, wanted)
    set_tensor(gm, target, tensor)
    with gm.graph.inserting_before(before):
        node = gm.graph.get_attr(target)
    mark(node, path=wanted.rpartition(".")[0], value=describe(tensor).to_dict())
    return node


def describe(tensor: Tensor) -> TensorInfo:
    """Return the TensorInfo of a real tensor, with no dynamic dimension."""
    return TensorInfo(tensor.dtype, tuple(tensor.shape), (False,) * tensor.ndim)


def call(
    graph: fx.Graph,
    target: Any,
    args: tuple[Any, ...],
    *,
    like: fx.Node,
    value: TensorInfo | None = None,
    **kwargs: Any,
) -> fx.Node:
    """Insert a call at the graph's insertion point with the module path of `like` and the given result description."""
    node = graph.call_function(target, args, kwargs)
    mark(node, path=path_of(like) or None, value=value.to_dict() if value else None)
    if "nn_module_stack" in like.meta:
        node.meta["nn_module_stack"] = like.meta["nn_module_stack"]
    return node


def arguments(node: fx.Node) -> list[Any]:
    """Return the positional then the keyword arguments; an edge (user, index) counts through this list."""
    return [*node.args, *node.kwargs.values()]


def set_argument(node: fx.Node, index: int, value: Any) -> None:
    """Replace argument `index` (as counted by `arguments`) of `node`."""
    if index < len(node.args):
        node.update_arg(index, value)
    else:
        node.update_kwarg(list(node.kwargs)[index - len(node.args)], value)


def replace(node: fx.Node, replacement: fx.Node) -> None:
    """Let every user of `node` read `replacement`, and erase `node`."""
    node.replace_all_uses_with(replacement)
    node.graph.erase_node(node)


def sort(gm: fx.GraphModule) -> None:
    """Move every node that stands before one of its inputs behind it; the others keep their order."""
    order: dict[fx.Node, None] = {}
    edges = sum(len(node.all_input_nodes) for node in gm.graph.nodes)
    for node in list(gm.graph.nodes):
        waiting = [node]
        while waiting:
            missing = [source for source in waiting[-1].all_input_nodes if source not in order]
            if missing:
                assert len(waiting) <= edges, f"the graph has a cycle through {missing[0]}"
                waiting.extend(reversed(missing))
            else:
                order[waiting.pop()] = None
    nodes = list(order)
    next(iter(gm.graph.nodes)).prepend(nodes[0])
    for before, node in pairwise(nodes):
        before.append(node)


def sweep(gm: fx.GraphModule) -> None:
    """Erase dead nodes and every module, parameter and buffer that no node reads."""
    gm.graph.eliminate_dead_code()
    gm.delete_all_unused_submodules()
    used = {str(node.target) for node in gm.graph.nodes if node.op == "get_attr"}
    called = tuple(f"{node.target}." for node in gm.graph.nodes if node.op == "call_module")
    for name in list(_tensor_names(gm)):
        if name not in used and not name.startswith(called or ("\0",)):
            holder, _, leaf = name.rpartition(".")
            delattr(gm.get_submodule(holder), leaf)


def _tensor_names(gm: fx.GraphModule) -> Iterable[str]:
    yield from (name for name, _ in gm.named_parameters(remove_duplicate=False))
    yield from (name for name, _ in gm.named_buffers(remove_duplicate=False))
