"""From an exported program to a plain graph: no hooks or assertions, one name per tensor, module paths on the nodes."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses import FakeTensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from fxquant.errors import CaptureError
from fxquant.graph import edit
from fxquant.graph.example import Example
from fxquant.graph.measure import measure_unknown
from fxquant.graph.signature import Signature, SignatureCodeGen
from fxquant.graph.sizes import sizes_of

ROOT = "model"  # the name under which the exported entry module holds the model
_KEPT = ("val", "stack_trace", "nn_module_stack")
_TENSORS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
_CHECKS = ("_assert", "sym_constrain")  # how the names of ops begin that compute nothing


def rebuild(program: ExportedProgram, example: Example, outputs: dict[str, Any]) -> fx.GraphModule:
    """Return the graph of `program` as a GraphModule that is called as the model was.

    Raises:
        CaptureError: the model changes a buffer of its own, or the program holds what is no tensor.
    """
    graph, copies, tensors = fx.Graph(), dict[fx.Node, fx.Node](), dict[str, Any]()
    old = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    inputs = [spec for spec in program.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT]
    for name, spec in zip(example.names, inputs, strict=True):
        node = old[spec.arg.name]
        copies[node] = _copy_meta(node, graph.placeholder(re.sub(r"\W", "_", name)))
        copies[node].target = copies[node].name
    _copy_tensors(program, graph, copies, tensors)
    _copy_rest(program, graph, copies, tensors)
    graph.eliminate_dead_code()
    _forbid_changed_buffers(program, graph)
    given = [node.meta["val"] for node in graph.nodes if node.op == "placeholder"]
    sizes = sizes_of(program, example.names, given)
    stated = (sizes.leaves, outputs, sizes.ranges, sizes.conditions)
    graph.set_codegen(SignatureCodeGen(Signature(example.parameters, example.inputs, *stated)))
    gm = fx.GraphModule(tensors, graph, class_name="CapturedGraph")  # it takes the tensors that are read, no others
    edit.mark(gm, stage="captured", unchecked=sizes.unchecked or None)
    gm.eval()
    measure_unknown(gm, example.tensors)
    return gm


def _copy_tensors(
    program: ExportedProgram, graph: fx.Graph, copies: dict[fx.Node, fx.Node], tensors: dict[str, Any]
) -> None:
    """Read the parameters and buffers by get_attr; all names of a tied tensor become the first."""
    old = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    first: dict[Any, str] = {}
    for spec in program.graph_signature.input_specs:
        if spec.kind is InputKind.USER_INPUT:
            continue
        if spec.kind not in _TENSORS or spec.target is None:
            raise CaptureError(f"the model holds {spec.target!r}, a {spec.kind.name}; only tensors can be captured")
        tensor = program.state_dict.get(spec.target, program.constants.get(spec.target))
        assert isinstance(tensor, Tensor), f"{spec.target} is in the program's tables"
        name = first.setdefault(tensor_key(tensor), spec.target.removeprefix(f"{ROOT}."))
        if name not in tensors:
            frozen = tensor.detach()
            tensors[name] = nn.Parameter(frozen, requires_grad=False) if isinstance(tensor, nn.Parameter) else frozen
        node = old[spec.arg.name]
        if node.users:
            copies[node] = _copy_meta(node, graph.get_attr(name), owner=name.rpartition(".")[0])


def tensor_key(tensor: Tensor) -> tuple[Any, ...]:
    """Return a key that tensors share where they are the same view of the same memory."""
    place = (tensor.device, tensor.untyped_storage().data_ptr(), tensor.storage_offset())
    # tensors of no elements have no memory that would tell them apart
    return (*place, tensor.dtype, tuple(tensor.shape), tensor.stride()) if tensor.numel() else (id(tensor),)


def _copy_rest(
    program: ExportedProgram, graph: fx.Graph, copies: dict[fx.Node, fx.Node], tensors: dict[str, Any]
) -> None:
    """Copy the calls, less the assertions, and the output."""
    for node in program.graph.nodes:
        if node.op == "placeholder" or (node.op == "call_function" and _is_check(node)):
            continue
        if node.op == "output":
            wanted = zip(program.graph_signature.output_specs, node.args[0], strict=True)
            leaves = tuple(leaf for spec, leaf in wanted if spec.kind is OutputKind.USER_OUTPUT)
            graph.output(fx.map_arg(leaves, copies.__getitem__))
            continue
        if node.op == "get_attr":  # the body of a higher-order op
            tensors[str(node.target)] = getattr(program.graph_module, str(node.target))
        copies[node] = _copy_meta(node, graph.node_copy(node, copies.__getitem__))


def _is_check(node: fx.Node) -> bool:
    name = getattr(node.target, "_opname", getattr(node.target, "__name__", ""))
    return name.startswith(_CHECKS) and not node.users


def _copy_meta(old: fx.Node, new: fx.Node, owner: str | None = None) -> fx.Node:
    """Keep what is of use: the value, the line of code and the modules, less the entry module."""
    new.meta = {key: old.meta[key] for key in _KEPT if key in old.meta}
    if "val" in new.meta:
        new.meta["val"] = pytree.tree_map_only(FakeTensor, settle, new.meta["val"])
    stack = _module_stack(new.meta.pop("nn_module_stack", None) or {})
    path = owner if owner is not None else (list(stack.values())[-1][0] if stack else "")
    if stack:
        new.meta["nn_module_stack"] = stack
    edit.mark(new, path=path or None)
    return new


def settle(value: FakeTensor) -> Tensor:
    """Return the tensor with plain ints for the symbolic sizes that the model has fixed."""
    sizes = [_plain(size) for size in value.shape]
    if all(a is b for a, b in zip(sizes, value.shape, strict=True)):
        return value
    with value.fake_mode:
        return torch.empty_strided(sizes, [_plain(s) for s in value.stride()], dtype=value.dtype, device=value.device)


def _plain(size: Any) -> Any:
    return int(size.node.expr) if isinstance(size, torch.SymInt) and size.node.expr.is_Integer else size


def _module_stack(stack: Mapping[str, tuple[str, Any]]) -> dict[str, tuple[str, Any]]:
    """Return the modules around a node, outermost first; the second call of one is `name@1` in its key alone."""
    found = {}
    for key, (path, cls) in stack.items():
        parts = path.split(".")
        if parts[0] == ROOT:
            found[key.replace(f"L__self__{ROOT}", "L__self__", 1)] = (re.sub(r"@\d+", "", ".".join(parts[1:])), cls)
    return found


def _forbid_changed_buffers(program: ExportedProgram, graph: fx.Graph) -> None:
    """Graphs share tensors and may be run at the same time, so none may write to them."""
    changed = [spec.target for spec in program.graph_signature.output_specs if spec.kind is OutputKind.BUFFER_MUTATION]
    for node in graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable:
            for argument, schema in zip(node.args, node.target._schema.arguments, strict=False):
                base = _memory_of(argument)
                if schema.alias_info is not None and schema.alias_info.is_write and edit.is_constant(base):
                    changed.append(base.target)
    if changed:
        name = str(changed[0]).removeprefix(f"{ROOT}.")
        advice = "take the update out of forward, or pass the tensor in and return it"
        raise CaptureError(f"forward changes {name!r}, a tensor of the model: {advice}")


def _memory_of(value: Any) -> Any:
    """Return the node whose memory `value` is a view of."""
    while isinstance(value, fx.Node) and isinstance(value.target, torch._ops.OpOverload):
        returns = value.target._schema.returns
        if not value.args or not any(each.alias_info is not None for each in returns):
            break
        value = value.args[0]
    return value
