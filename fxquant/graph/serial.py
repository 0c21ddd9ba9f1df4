"""A graph as JSON-able data, and back. Reading it runs nothing that the data names, and trusts none of it.

Data of a graph: {"signature": …, "marks": {…}, "nodes": [{"name", "op", "target", "args", "kwargs", "marks"}, …]},
nodes in order, empty entries left out. Tensors are not part of it: a get_attr node names one.
"""

import keyword
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, fx, nn

from fxquant.errors import ArtifactError, first_line
from fxquant.graph import edit, targets, values
from fxquant.graph.signature import Signature, SignatureCodeGen, signature_of

_QUOTES = re.compile(r"[\"'\\]")  # a name with one of these could end a string in generated code
_RESERVED = (frozenset(dir(fx.GraphModule(nn.Module(), fx.Graph()))), frozenset(dir(nn.Module())))
_DIMENSIONS = 64  # more than any torch tensor has


def to_data(gm: fx.GraphModule) -> dict[str, Any]:
    """Return a captured or converted graph as JSON-able data; `from_data` reads it back.

    Of a node's metadata only fxquant's own facts are kept, with what is known of its tensor.

    Raises:
        ArtifactError: the graph calls something, or with something, that an artifact cannot hold; names the node.
    """
    return {
        "signature": signature_of(gm).to_dict(),
        "marks": edit.marks(gm),
        "nodes": [_node_data(node) for node in gm.graph.nodes],
    }


def _node_data(node: fx.Node) -> dict[str, Any]:
    facts = {key: fact for key, fact in edit.marks(node).items() if key != "value"}
    known = edit.info(node)
    if known is not None and node.op != "get_attr":  # of a constant its tensor says it
        facts["value"] = known.to_dict()
    data: dict[str, Any] = {"name": node.name, "op": node.op}
    try:
        if not _plain(node.name):
            raise ArtifactError("an artifact can hold nodes with the names of variables only")
        if node.op == "call_function":
            data["target"] = targets.name_of(node.target)
        elif node.op == "get_attr":
            _check_path(str(node.target))
            data["target"] = str(node.target)
        elif node.op not in ("placeholder", "output"):
            raise ArtifactError(f"it is a {node.op} of {node.target}; only calls of operators can be saved")
        args = [values.encode(value) for value in node.args]
        kwargs = {name: values.encode(value) for name, value in node.kwargs.items()}
    except ArtifactError as error:
        where = f" in module {edit.path_of(node)}" if edit.path_of(node) else ""
        raise ArtifactError(f"node %{node.name}{where} cannot be saved: {error}") from None
    filled = {"args": args, "kwargs": kwargs, "marks": facts}
    return {**data, **{key: value for key, value in filled.items() if value}}


def constants(data: Any) -> list[str]:
    """Return the names of the tensors that the graph in `data` reads, each once.

    Raises:
        ArtifactError: the data is no graph.
    """
    nodes = data.get("nodes") if isinstance(data, dict) else None
    if not isinstance(nodes, list) or not all(isinstance(node, dict) for node in nodes):
        raise ArtifactError(f"{str(data)[:80]!r} is no graph: expected an object with a list of nodes")
    return list(dict.fromkeys(str(node.get("target")) for node in nodes if node.get("op") == "get_attr"))


def from_data(data: Any, tensors: Mapping[str, Tensor]) -> fx.GraphModule:
    """Build the graph of `data` on `tensors`, which it reads by the names in `constants(data)`.

    Raises:
        ArtifactError: the data is no graph that `to_data` writes; names the node. It may be damaged or hostile: only
            operators that `targets.resolve` grants are called, and names that end up in generated code are plain.
    """
    names = constants(data)
    for name in names:
        _check_path(name)
    if not isinstance(data.get("marks"), dict):
        raise ArtifactError("a graph has no marks, which say what stage it is at")
    signature = Signature.from_dict(data.get("signature"))  # which checks what it is given
    graph = _graph(data["nodes"], signature)
    graph.set_codegen(SignatureCodeGen(signature))
    root = nn.Module()
    for name in names:
        _attach(root, name, tensors[name])
    gm = _compiled(root, graph)
    gm.meta[edit.KEY] = data["marks"]
    for node in graph.nodes:
        if node.op == "get_attr":
            edit.mark(node, value=edit.describe(edit.get_tensor(gm, node)).to_dict())
    gm.eval()
    return gm


def _compiled(root: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    """Return the module of a graph; where its arguments make no sense (an item of True), its code says so."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", SyntaxWarning)
        try:
            return fx.GraphModule(root, graph, class_name="LoadedGraph")
        except (SyntaxError, IndexError) as error:  # an index: an operator of Python with too few arguments
            raise ArtifactError(f"a graph makes no program that can run: {first_line(error)}") from None


def _graph(entries: Sequence[dict[str, Any]], signature: Signature) -> fx.Graph:
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    for entry in entries:
        name = entry.get("name")
        try:
            if not isinstance(name, str) or not _plain(name) or name in nodes:
                raise ArtifactError("its name is no identifier, or taken")
            nodes[name] = _add(graph, name, entry, nodes)
            nodes[name].meta[edit.KEY] = _facts(entry)
        except ArtifactError as error:
            raise ArtifactError(f"node {str(name)[:80]!r} cannot be read: {error}") from None
    inputs = sum(node.op == "placeholder" for node in graph.nodes)
    ends = [position for position, node in enumerate(graph.nodes) if node.op == "output"]
    if inputs != len(signature.leaves):
        raise ArtifactError(f"a graph has {inputs} placeholders, and its signature {len(signature.leaves)} inputs")
    if ends != [len(nodes) - 1]:
        raise ArtifactError("a graph does not end with its only output node")
    return graph


def _add(graph: fx.Graph, name: str, entry: dict[str, Any], nodes: dict[str, fx.Node]) -> fx.Node:
    """Append the node of `entry`."""
    op, wanted = entry.get("op"), entry.get("target")
    given, named = entry.get("args", []), entry.get("kwargs", {})
    if not isinstance(given, list) or not isinstance(named, dict):
        raise ArtifactError("its arguments are no list, or its keyword arguments no object")
    args = tuple(values.decode(value, nodes) for value in given)
    kwargs = {key: values.decode(value, nodes) for key, value in named.items()}
    target: Any = wanted
    if op == "call_function":
        target = targets.resolve(wanted)
        targets.check_arguments(target, args, kwargs)
    elif op == "output":
        target = "output"
        if len(args) != 1 or not isinstance(args[0], list | tuple) or kwargs:
            raise ArtifactError("an output takes the list of what the graph returns")
    elif op not in ("placeholder", "get_attr"):
        raise ArtifactError(f"{str(op)[:80]!r} is no kind of node of an artifact")
    elif args or kwargs:
        raise ArtifactError(f"a {op} takes no arguments")
    elif op == "placeholder":
        target = name
    return graph.create_node(op, target, args, kwargs, name)


def _facts(entry: dict[str, Any]) -> dict[str, Any]:
    facts = entry.get("marks", {})
    if not isinstance(facts, dict) or not _is_value(facts.get("value")) or not _harmless(facts.get("path", "")):
        raise ArtifactError("its marks are no object, or what they state of its tensor or module makes no sense")
    return facts


def _is_value(value: Any) -> bool:
    """Say whether `value` is None or what `TensorInfo.to_dict` writes."""
    if value is None:
        return True
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "dynamic"}:
        return False
    shape, dynamic = value["shape"], value["dynamic"]
    good = isinstance(shape, list) and isinstance(dynamic, list) and len(shape) == len(dynamic) <= _DIMENSIONS
    return (
        good
        and values.is_dtype(value["dtype"])
        and all(type(size) is int and 0 <= size < 2**63 for size in shape)
        and all(type(flag) is bool for flag in dynamic)
    )


def _plain(name: str) -> bool:
    reserved = keyword.iskeyword(name) or name == "self" or name.startswith(("__", "_fxquant"))
    return name.isidentifier() and not reserved


def _harmless(text: Any) -> bool:
    return isinstance(text, str) and text.isprintable() and not _QUOTES.search(text)


def _check_path(path: str) -> None:
    """Raise `ArtifactError` unless `path` is one that a tensor of a module can have."""
    parts = path.split(".")
    hidden = any(part in _RESERVED[min(depth, 1)] or part.startswith("__") for depth, part in enumerate(parts))
    if hidden or "" in parts or not _harmless(path):
        raise ArtifactError(f"{path[:80]!r} is no name that a tensor of a graph can have")


def _attach(root: nn.Module, path: str, tensor: Tensor) -> None:
    """Put `tensor` at `path`, as a parameter if it is one."""
    *parents, leaf = path.split(".")
    holder: Any = root
    try:
        for part in parents:
            if part not in holder._modules:
                holder.add_module(part, nn.Module())
            holder = holder._modules[part]
        register = holder.register_parameter if isinstance(tensor, nn.Parameter) else holder.register_buffer
        register(leaf, tensor)
    except KeyError:  # what torch raises for a name that is taken
        raise ArtifactError(f"{path[:80]!r} is a tensor and a module at the same time") from None
