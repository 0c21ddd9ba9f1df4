"""Where in a model the nodes of a graph of torch.compile come from, as Dynamo says it."""

import re

from torch import fx
from torch._subclasses import FakeTensor

from fxquant.graph import edit
from fxquant.graph.rebuild import settle

_STEP = re.compile(r"\._(?:modules|parameters|buffers)\['([^']+)'\]|\.(\w+)|\['?(\w+)'?\]")  # of a source's name


def described(old: fx.Node, new: fx.Node, owner: str | None = None) -> fx.Node:
    """Keep the value, the line of code and the modules around a node; the path is that of the innermost."""
    new.meta = {key: old.meta[key] for key in ("val", "stack_trace") if key in old.meta}
    if isinstance(new.meta.get("val"), FakeTensor):
        new.meta["val"] = settle(new.meta["val"])
    stack = {key: (_steps(path), cls) for key, (path, cls) in (old.meta.get("nn_module_stack") or {}).items()}
    if stack:
        new.meta["nn_module_stack"] = stack
    path = owner if owner is not None else (list(stack.values())[-1][0] if stack else "")
    edit.mark(new, path=path or None)
    return new


def _steps(source: str) -> str:
    """Return a dotted path for what Dynamo calls `L['self']._modules['layer']._modules['0']`, less its root."""
    _, bracket, rest = source.partition("]")
    return ".".join(next(filter(None, step)) for step in _STEP.findall(rest)) if bracket else source


def path_of_input(node: fx.Node) -> str:
    """Return the attribute path of a parameter, where Dynamo says it, else the placeholder's name."""
    name = getattr(getattr(node, "_dynamo_source", None), "name", "")
    return _steps(name() if callable(name) else name) or node.name  # a method before torch 2.12
