"""A graph as text: one line a node, the same on every machine and in every process.

    %input_ids = placeholder  # int64[?0, ?1]
    %head.weight = get_attr  # float32[8, 32]
    %linear = aten.linear.default(%hidden, %head.weight, None)  # float32[?0, ?1, 8] head
    return (%linear)

A placeholder and a tensor are called by their own names, a call by its operator and its place among that operator's
calls. Dynamic sizes are `?0`, `?1`, … in order of appearance (`?` where only the fact is known that a size may vary).
After the type come the module path and fxquant's own facts about the node, as JSON. No tensor's contents are printed.
"""

import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from fxquant.graph import edit

Sizes = Callable[[Any], str]


def to_text(gm: fx.GraphModule) -> str:
    """Return the graph as text, with a line end after each node."""
    names = _names(gm.graph)
    size = _size_printer()
    return "".join(f"{_line(gm, node, names, size)}\n" for node in gm.graph.nodes)


def _names(graph: fx.Graph) -> dict[fx.Node, str]:
    names: dict[fx.Node, str] = {}
    taken: set[str] = set()
    counts: dict[str, int] = {}
    for node in graph.nodes:
        wanted = name = _stem(node)
        while name in taken:
            counts[wanted] = counts.get(wanted, 0) + 1
            name = f"{wanted}_{counts[wanted]}"
        taken.add(name)
        names[node] = name
    return names


def _stem(node: fx.Node) -> str:
    if node.op != "call_function":
        return str(node.target)
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.name.rpartition("::")[2]
    return str(getattr(node.target, "__name__", node.target))


def _size_printer() -> Sizes:
    """Return a function that prints an int or symbolic int, with symbols renamed in order of appearance."""
    symbols: dict[Any, Any] = {}

    def show(size: Any) -> str:
        if not isinstance(size, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            return str(size)
        expression = size.node.expr
        # sympy keeps a set: its order depends on hashes, so new names are given out in the order of the printed form.
        for symbol in sorted(expression.free_symbols, key=str):
            symbols.setdefault(symbol, type(symbol)(f"?{len(symbols)}", integer=True))
        return str(expression.xreplace(symbols))

    return show


def _line(gm: fx.GraphModule, node: fx.Node, names: dict[fx.Node, str], size: Sizes) -> str:
    if node.op == "output":
        return f"return {_value(node.args[0], names)}"
    text = f"%{names[node]} = {_call(gm, node, names)}"
    facts = {key: fact for key, fact in edit.marks(node).items() if key not in ("path", "value")}
    shown = [_type(node, size), edit.path_of(node), json.dumps(facts, sort_keys=True) if facts else ""]
    comment = " ".join(part for part in shown if part)
    return f"{text}  # {comment}" if comment else text


def _call(gm: fx.GraphModule, node: fx.Node, names: dict[fx.Node, str]) -> str:
    if node.op in ("placeholder", "get_attr"):
        return node.op
    values = [_value(value, names) for value in node.args]
    values += [f"{name}={_value(value, names)}" for name, value in node.kwargs.items()]
    return f"{_callee(gm, node)}({', '.join(values)})"


def _callee(gm: fx.GraphModule, node: fx.Node) -> str:
    if node.op == "call_module":
        return f"{type(gm.get_submodule(str(node.target))).__name__}[{node.target}]"
    if isinstance(node.target, (torch._ops.OpOverload, str)):
        return str(node.target)
    module = getattr(node.target, "__module__", "") or ""
    return f"{module.lstrip('_')}.{getattr(node.target, '__qualname__', node.target)}".lstrip(".")


def _value(value: Any, names: dict[fx.Node, str]) -> str:
    if isinstance(value, fx.Node):
        return f"%{names[value]}"
    if isinstance(value, (list, tuple)):
        inside = ", ".join(_value(each, names) for each in value)
        return f"[{inside}]" if isinstance(value, list) else f"({inside})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {_value(each, names)}" for key, each in value.items()) + "}"
    if isinstance(value, slice):
        return f"slice{_value((value.start, value.stop, value.step), names)}"
    if isinstance(value, (torch.dtype, torch.layout, torch.memory_format, torch.device)):
        return str(value).removeprefix("torch.")
    return repr(value)


def _type(node: fx.Node, size: Sizes) -> str:
    value = node.meta.get("val")
    if value is not None:
        return _type_of(value, size)
    known = edit.info(node)
    if known is None:
        return ""
    sizes = ("?" if dynamic else str(extent) for extent, dynamic in zip(known.shape, known.dynamic, strict=True))
    return f"{_value(known.dtype, {})}[{', '.join(sizes)}]"


def _type_of(value: Any, size: Sizes) -> str:
    if isinstance(value, Tensor):
        return f"{_value(value.dtype, {})}[{', '.join(size(extent) for extent in value.shape)}]"
    if isinstance(value, (list, tuple)):
        return f"({', '.join(_type_of(each, size) for each in value)})"
    return size(value)
