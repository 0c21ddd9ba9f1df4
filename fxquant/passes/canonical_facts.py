"""What the canonical rewrites may rely on: facts that are proven for every input, not only for the example."""

from typing import Any

import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses import FakeTensor
from torch.utils import _pytree as pytree

from fxquant.graph import edit
from fxquant.graph.arguments import spell_out

aten = torch.ops.aten

# Hands on its very input; marked as mutating only because it sets an autograd flag.
HARMLESS = {aten.detach_.default}


def sizes(node: Any) -> tuple[Any, ...] | None:
    """Return the sizes of a node's tensor: equal entries are equal sizes for every input; None if it is no tensor."""
    if not isinstance(node, fx.Node):
        return None
    value = node.meta.get("val")
    if isinstance(value, Tensor):
        return tuple(size if isinstance(size, int) else size.node.expr for size in value.shape)
    known = edit.info(node)
    if known is None:
        return None
    # Of a size that may vary nothing is known: a fresh object equals nothing else.
    return tuple(object() if dynamic else size for size, dynamic in zip(known.shape, known.dynamic, strict=True))


def same_shape(a: Any, b: Any) -> bool:
    """Say whether two nodes provably have the same shape."""
    found = sizes(a)
    return found is not None and found == sizes(b)


def dtype_of(node: Any) -> torch.dtype | None:
    """Return the dtype of a node's tensor, or None where it is no tensor or nothing is known of it."""
    if not isinstance(node, fx.Node):
        return None
    value = node.meta.get("val")
    if isinstance(value, Tensor):
        return value.dtype
    known = edit.info(node)
    return known.dtype if known is not None else None


def same_type(a: Any, b: Any) -> bool:
    """Say whether two nodes provably have the same dtype and shape."""
    return dtype_of(a) is not None and dtype_of(a) == dtype_of(b) and same_shape(a, b)


def is_mutating(node: fx.Node) -> bool:
    """Say whether `node` writes to one of its arguments."""
    if not isinstance(node.target, torch._ops.OpOverload) or node.target in HARMLESS:
        return False
    return bool(node.target._schema.is_mutable)


def has_mutation(gm: fx.GraphModule) -> bool:
    """Say whether some node writes to an argument, so that a copy and the tensor copied may come to differ."""
    return any(is_mutating(node) for node in gm.graph.nodes)


def call_like(old: fx.Node, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> fx.Node:
    """Insert before `old` a call that computes its value another way, and return the new node.

    Its arguments are spelled out by the schema; it takes over what is known of `old`: type, module path, marks.
    """
    positional, named = spell_out(target, args, kwargs or {})
    with old.graph.inserting_before(old):
        node = edit.call(old.graph, target, positional, like=old, **named)
    edit.mark(node, **edit.marks(old))
    take_type(node, old)
    return node


def computed(before: fx.Node, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
    """Insert a call before a node, like it, with the type that its arguments give it where theirs are known.

    A size that the graph knows as a number is returned as that number, without a call.
    """
    positional, named = spell_out(target, args, kwargs or {})
    value = _typed(target, positional, named)
    if isinstance(value, int):
        return value
    with before.graph.inserting_before(before):
        node = edit.call(before.graph, target, positional, like=before, **named)
    if value is not None:
        node.meta["val"] = value
    return node


def _typed(target: Any, positional: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """Return what a call gives for the types of its arguments; None where some are not known."""
    nodes = [leaf for leaf in pytree.tree_leaves((positional, named)) if isinstance(leaf, fx.Node)]
    fakes = (leaf for node in nodes for leaf in pytree.tree_leaves(node.meta.get("val")))
    fake = next((leaf for leaf in fakes if isinstance(leaf, FakeTensor)), None)
    if fake is None:
        return None
    # The dispatcher written in Python knows symbolic sizes in all versions of torch, C++ decompositions do not.
    with fake.fake_mode, enable_python_dispatcher():
        values = {node: node.meta.get("val", _constant(node, fake.device)) for node in nodes}
        if any(value is None for value in values.values()):
            return None
        args, kwargs = pytree.tree_map_only(fx.Node, values.__getitem__, (positional, named))
        return target(*args, **kwargs)


def _constant(node: fx.Node, device: torch.device) -> Tensor | None:
    """Return a tensor like a constant that a pass has added, of which its facts alone are known."""
    known = edit.info(node) if edit.is_constant(node) else None
    return None if known is None else torch.empty(known.shape, dtype=known.dtype, device=device)


def take_type(node: fx.Node, old: fx.Node) -> None:
    """Record that `node` computes a tensor of the dtype and shape of that of `old`."""
    edit.mark(node, value=edit.marks(old).get("value"))
    if "val" in old.meta:
        node.meta["val"] = old.meta["val"]


def substitute(old: fx.Node, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> fx.Node:
    """Replace `old` by a call that computes the same value, and return the new node."""
    node = call_like(old, target, args, kwargs)
    edit.replace(old, node)
    return node
