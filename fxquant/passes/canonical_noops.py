"""Calls that hand on their input: dropouts at inference, casts to the same dtype, copies, whole slices, times one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from fxquant.graph import edit
from fxquant.passes.canonical_facts import dtype_of, has_mutation, same_shape, same_type

aten = torch.ops.aten


@dataclass(frozen=True)
class RemoveNoops:
    """Let the users of a call that provably hands on its first argument read that argument. Exact, to the sign of 0.

    Calls that make a copy stay where some node writes to a tensor, and where an output would become an input or a
    parameter itself. Assertions about dtypes and sizes go too: a captured graph checks its inputs at its entry.
    """

    name: ClassVar[str] = "remove_noops"
    after: ClassVar[tuple[str, ...]] = ("normalize_arguments", "functionalize", "unify_spelling")

    def apply(self, gm: fx.GraphModule) -> int:
        found = ALIASES if has_mutation(gm) else {**ALIASES, **COPIES}
        count = 0
        for node in list(gm.graph.nodes):
            if node.op != "call_function":
                continue
            if node.target in ASSERTIONS:
                gm.graph.erase_node(node)
                count += 1
            elif node.target in found and found[node.target](node) and not _is_needed_copy(node):
                edit.replace(node, edit.arguments(node)[0])
                count += 1
        return count


def _is_needed_copy(node: fx.Node) -> bool:
    """Say whether a caller who writes to the model's outputs would then write to its inputs or parameters."""
    given_back = any(user.op == "output" for user in node.users)
    return node.target in COPIES and given_back and edit.arguments(node)[0].op in ("placeholder", "get_attr")


def _always(node: fx.Node) -> bool:
    return True


def _drops_nothing(node: fx.Node) -> bool:
    _, probability, train = node.args
    return train is False or bool(probability == 0)


def _keeps_dtype(node: fx.Node) -> bool:
    return dtype_of(node) is not None and dtype_of(node) == dtype_of(node.args[0])


def _keeps_shape(node: fx.Node) -> bool:
    return same_shape(node, node.args[0])


def _keeps_order(node: fx.Node) -> bool:
    axes = edit.arguments(node)[1]
    return list(axes) == list(range(len(axes)))


def _swaps_nothing(node: fx.Node) -> bool:
    return bool(node.args[1] == node.args[2])


def _keeps_type_and_has(neutral: int, kinds: Callable[[torch.dtype], bool]) -> Callable[[fx.Node], bool]:
    def holds(node: fx.Node) -> bool:
        other, dtype = node.args[1], dtype_of(node)
        scaled = node.kwargs.get("alpha", 1) != 1
        neutral_number = isinstance(other, (int, float)) and other == neutral and not scaled
        return neutral_number and dtype is not None and kinds(dtype) and same_type(node, node.args[0])

    return holds


def _any(dtype: torch.dtype) -> bool:
    return True


def _whole(dtype: torch.dtype) -> bool:
    # −0.0 + 0 is +0.0, so of floats only subtraction keeps every bit.
    return not dtype.is_floating_point and not dtype.is_complex


# No copy is made: the call's result is its argument, or a view of all of it.
ALIASES: dict[Any, Callable[[fx.Node], bool]] = {
    aten.dropout.default: _drops_nothing,
    aten.feature_dropout.default: _drops_nothing,
    aten.alpha_dropout.default: _drops_nothing,
    aten.feature_alpha_dropout.default: _drops_nothing,
    aten.alias.default: _always,
    aten.detach.default: _always,
    aten.detach_.default: _always,
    aten.lift_fresh.default: _always,
    aten.slice.Tensor: _keeps_shape,
    aten.expand.default: _keeps_shape,
    aten.reshape.default: _keeps_shape,
    aten.flatten.using_ints: _keeps_shape,
    aten.unflatten.int: _keeps_shape,
    aten.permute.default: _keeps_order,
    aten.transpose.int: _swaps_nothing,
}
COPIES: dict[Any, Callable[[fx.Node], bool]] = {
    aten.to.dtype: _keeps_dtype,
    aten.clone.default: _always,
    aten.contiguous.default: _always,
    aten.lift_fresh_copy.default: _always,
    aten.repeat.default: _keeps_shape,
    aten.mul.Tensor: _keeps_type_and_has(1, _any),
    aten.div.Tensor: _keeps_type_and_has(1, _any),
    aten.add.Tensor: _keeps_type_and_has(0, _whole),
    aten.sub.Tensor: _keeps_type_and_has(0, _any),
}
ASSERTIONS = {
    aten._assert_tensor_metadata.default,
    aten._assert_scalar.default,
    aten.sym_constrain_range.default,
    aten.sym_constrain_range_for_size.default,
}
