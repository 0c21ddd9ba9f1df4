"""In-place calls to their functional forms, where nothing else can see the tensor that is written to."""

import operator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from fxquant.passes.canonical_facts import HARMLESS, dtype_of, is_mutating, substitute

aten = torch.ops.aten

# Operators made of others may hand on their input (dropout, type_as); these are known to return a fresh tensor.
FRESH = {
    aten.linear.default,
    aten.matmul.default,
    aten.conv1d.default,
    aten.conv2d.default,
    aten.conv3d.default,
    aten.batch_norm.default,
    aten.layer_norm.default,
    aten.group_norm.default,
}


@dataclass(frozen=True)
class Functionalize:
    """Turn `op_(x, …)` into `op(x, …)` where x was freshly computed and nothing else looks into its memory.

    Whoever reads x behind the call reads the result from then on. An in-place call on an input, a parameter, a view, or
    a tensor of which there are views or that is written to twice stays. Exact.
    """

    name: ClassVar[str] = "functionalize"
    after: ClassVar[tuple[str, ...]] = ("normalize_arguments",)

    def apply(self, gm: fx.GraphModule) -> int:
        count = 0
        for node in list(gm.graph.nodes):
            target = _functional(node) if node.op == "call_function" and is_mutating(node) else None
            if target is not None and _is_unshared(node.args[0], node) and _keeps_dtype(node):
                written = node.args[0]
                new = substitute(node, target, node.args, dict(node.kwargs))
                written.replace_all_uses_with(new, delete_user_cb=lambda user, new=new: new < user)
                count += 1
        return count


def _functional(node: fx.Node) -> Any:
    """Return the operator without the underscore that takes the same arguments, or None."""
    assert isinstance(node.target, torch._ops.OpOverload)
    namespace, _, name = node.target._schema.name.partition("::")
    if namespace != "aten" or not name.endswith("_") or name.startswith("_") or node.target in HARMLESS:
        return None
    packet = getattr(aten, name[:-1], None)
    target = getattr(packet, node.target._overloadname, None)
    if target is None or target._schema.is_mutable:
        return None
    given, wanted = node.target._schema.arguments, target._schema.arguments
    same = [(a.name, a.kwarg_only) for a in given] == [(a.name, a.kwarg_only) for a in wanted]
    written = [a.name for a in given if a.alias_info is not None and a.alias_info.is_write]
    return target if same and written == [given[0].name] else None


def _is_unshared(node: Any, writer: fx.Node) -> bool:
    """Say whether a tensor has memory of its own that only `writer` writes to, and that no other value is a view of."""
    if not isinstance(node, fx.Node):
        return False
    source = node.args[0] if node.target is operator.getitem else node
    others = [user for user in node.users if user is not writer]
    return isinstance(source, fx.Node) and _is_fresh(source) and all(map(_is_fresh, others))


def _is_fresh(node: fx.Node) -> bool:
    """Say whether a call reads its arguments alone, and returns tensors of their own."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    schema = node.target._schema
    if schema.is_mutable or any(result.alias_info is not None for result in schema.returns):
        return False
    name = ".".join(part for part in (schema.name, schema.overload_name) if part)
    composite = torch._C._dispatch_has_kernel_for_dispatch_key(name, "CompositeImplicitAutograd")
    return node.target in FRESH or not composite


def _keeps_dtype(node: fx.Node) -> bool:
    """Say whether the functional call, which promotes, gives the dtype that the in-place call casts to."""
    wanted = dtype_of(node.args[0])
    if wanted is None:
        return False
    others = [dtype_of(other) for other in node.all_input_nodes[1:]]
    harmless = {wanted, torch.bool, torch.int64, torch.int32} if wanted.is_floating_point else {wanted}
    return all(other in harmless for other in others)
