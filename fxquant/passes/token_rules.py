"""Which ops treat each token by itself, and along which axis of their operands the tokens then lie.

A value of a padded batch has sequences along axis 0 and tokens along a later one. A rule is given a node and the axis
of tokens in its result; it returns the operands that have tokens, too, or None where tokens meet each other. Operands
that it does not return are the same for all tokens.
"""

import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import fx

from fxquant.graph import edit
from fxquant.passes.token_views import (
    Rule,
    Use,
    Uses,
    along,
    concatenation,
    is_fixed,
    permute,
    rank,
    reduction,
    reshape,
    selection,
    shape_of,
    stacking,
    transpose,
    unflatten,
    unsqueeze,
)

aten, ops = torch.ops.aten, torch.ops.fxquant


def token_operands(node: fx.Node, axis: int) -> Uses | None:
    """Return the operands with tokens of a node whose result has them along `axis`; None if tokens meet in it."""
    if node.op != "call_function" or axis < 1:
        return None
    rule = RULES.get(node.target)
    if rule is None and _is_pointwise(node.target):
        rule = _pointwise
    return rule(node, axis) if rule else None


def result_axis(user: fx.Node, value: fx.Node, axis: int) -> int | None:
    """Return where the tokens that `value` has along `axis` lie in the result of `user`; None if they meet in it."""
    wanted = Use(value, axis)
    candidates = range(1, max(rank(user), rank(value)) + 1)
    return next((found for found in candidates if wanted in (token_operands(user, found) or ())), None)


def is_lookup(node: fx.Node) -> bool:
    """Say whether a node looks up rows of a table."""
    return RULES.get(node.target) is _lookup


def is_view(node: fx.Node) -> bool:
    """Say whether a node only adds an axis, exchanges some, or repeats values."""
    return node.target in (aten.unsqueeze.default, aten.transpose.int, aten.expand.default)


def _is_pointwise(target: Any) -> bool:
    tags = target.tags if isinstance(target, torch._ops.OpOverload) else ()
    return torch.Tag.pointwise in tags and torch.Tag.nondeterministic_seeded not in tags


def _tensors(node: fx.Node) -> list[fx.Node] | None:
    """Return the operands that are tensors; None if one may be that nothing is known of."""
    found = []
    for operand in node.all_input_nodes:
        if edit.info(operand) is not None:
            found.append(operand)
        elif not _is_number(operand):
            return None
    return found


def _is_number(node: fx.Node) -> bool:
    """Say whether a node computes a size."""
    module = getattr(node.target, "__module__", "")
    return node.target is aten.sym_size.int or module in ("_operator", "math", "torch")


def _broadcast(node: fx.Node, axis: int, operands: Iterable[Any]) -> Uses | None:
    """Return the uses of operands whose axes are aligned with those of the result, from the last on."""
    if axis >= rank(node):
        return None
    uses = []
    for operand in operands:
        shape = shape_of(operand)
        if shape is None:
            return None
        missing = rank(node) - len(shape)
        own = axis - missing
        if own < 0 or (shape[own] == 1 and (missing or shape[0] == 1)):
            continue
        uses.append(Use(operand, axis, missing))
    return tuple(uses)


def _pointwise(node: fx.Node, axis: int) -> Uses | None:
    tensors = _tensors(node)
    return None if tensors is None else _broadcast(node, axis, tensors)


def _rows(*names: str) -> Rule:
    """Return the rule of ops that map rows, along the last axis, of the operands called `names`."""

    def rule(node: fx.Node, axis: int) -> Uses | None:
        assert isinstance(node.target, torch._ops.OpOverload)
        named = [argument.name for argument in node.target._schema.arguments]
        operands = [value for name, value in zip(named, node.args, strict=False) if name in names and value is not None]
        return _broadcast(node, axis, operands) if axis < rank(node) - 1 else None

    return rule


def _norm(node: fx.Node, axis: int) -> Uses | None:
    x, shape = node.args[:2]
    assert isinstance(shape, list | tuple)
    return _broadcast(node, axis, [x]) if axis < rank(node) - len(shape) else None


def _quantization(node: fx.Node, axis: int) -> Uses | None:
    return _broadcast(node, axis, node.args[:3]) if node.args[3] is None else None


def _lookup(node: fx.Node, axis: int) -> Uses | None:
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    indices = node.args[names.index("indices")]
    assert isinstance(indices, fx.Node)
    return (Use(indices, axis),) if axis < rank(indices) else None


def _expand(node: fx.Node, axis: int) -> Uses | None:
    return _broadcast(node, axis, node.args[:1]) if is_fixed(node, axis) else None


def _item(node: fx.Node, axis: int) -> Uses | None:
    source = node.args[0]
    several = isinstance(source, fx.Node) and RULES.get(source.target) in (_SPLIT, _quantized_rows, selection)
    return (Use(source, axis),) if several else None  # type: ignore[arg-type]


def _quantized_rows(node: fx.Node, axis: int) -> Uses | None:
    x = node.args[0]
    assert isinstance(x, fx.Node)
    return (Use(x, axis),) if axis < rank(x) - 1 else None


_LINEAR = _rows("x", "input", "residual", "x_scale", "x_zero_point")
_SPLIT = along(2)

RULES: dict[Any, Rule] = {
    ops.packed_linear_dynamic_int8.default: _LINEAR,
    ops.packed_linear_int8.default: _LINEAR,
    ops.x86_linear_dynamic_int8.default: _LINEAR,
    ops.x86_linear_int8.default: _LINEAR,
    ops.x86_linear_weight_int8.default: _LINEAR,
    ops.packed_linear_weight_only.default: _LINEAR,
    ops.linear_weight_only.default: _LINEAR,
    ops.int8_gemm.default: _LINEAR,
    ops.quantize_rows.default: _quantized_rows,
    aten.linear.default: _LINEAR,
    ops.rows_embedding_int8.default: _lookup,
    ops.x86_embedding_int8.default: _lookup,
    aten.embedding.default: _lookup,
    ops.quantize_static.default: _rows("x"),
    ops.quantize.default: _quantization,
    ops.dequantize.default: _quantization,
    aten.layer_norm.default: _norm,
    aten.rms_norm.default: _norm,
    aten.to.dtype: _pointwise,
    aten.where.ScalarOther: _pointwise,
    aten.where.ScalarSelf: _pointwise,
    aten.softmax.int: along(1),
    aten.log_softmax.int: along(1),
    aten.slice.Tensor: along(1),
    aten.split.Tensor: _SPLIT,
    aten.split_with_sizes.default: _SPLIT,
    aten.chunk.default: _SPLIT,
    operator.getitem: _item,
    aten.cat.default: concatenation,
    aten.reshape.default: reshape,
    aten.expand.default: _expand,
    aten.unflatten.int: unflatten,
    aten.unsqueeze.default: unsqueeze,
    aten.squeeze.dim: selection,
    aten.select.int: selection,
    aten.unbind.int: selection,
    aten.stack.default: stacking,
    aten.transpose.int: transpose,
    aten.permute.default: permute,
    aten.mean.dim: reduction,
    aten.sum.dim_IntList: reduction,
    aten.amax.default: reduction,
    aten.argmax.default: reduction,
}
