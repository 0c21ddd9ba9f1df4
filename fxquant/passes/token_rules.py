"""Which ops treat each token by itself, and along which axis of their operands the tokens then lie.

A value of a padded batch has sequences along axis 0 and tokens along a later one. A rule is given a node and the axis of
tokens in its result; it returns the operands that have tokens, too, or None where tokens meet each other. Operands that
it does not return are the same for all tokens.
"""

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fxquant.graph import edit

aten, ops = torch.ops.aten, torch.ops.fxquant


@dataclass(frozen=True)
class Use:
    """An operand with tokens along `axis`, as counted after `missing` leading axes are added to it."""

    value: fx.Node
    axis: int
    missing: int = 0


Uses = tuple[Use, ...]
Rule = Callable[[fx.Node, int], Uses | None]


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
    candidates = range(1, max(_rank(user), _rank(value)) + 1)
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


def _shape(node: Any) -> tuple[int | None, ...] | None:
    """Return a tensor's sizes; None for one that may vary."""
    known = edit.info(node) if isinstance(node, fx.Node) else None
    if known is None:
        return None
    return tuple(None if dynamic else size for size, dynamic in zip(known.shape, known.dynamic, strict=True))


def _rank(node: Any) -> int:
    return len(_shape(node) or ())


def _axis(dim: Any, rank: int) -> int:
    assert isinstance(dim, int)
    return dim % rank if rank else 0


# ── ops on all operands in step ───────────────────────────────────────────────────────────────────────────────────


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
    rank = _rank(node)
    if axis >= rank:
        return None
    uses = []
    for operand in operands:
        shape = _shape(operand)
        if shape is None:
            return None
        missing = rank - len(shape)
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
        return _broadcast(node, axis, operands) if axis < _rank(node) - 1 else None

    return rule


def _norm(node: fx.Node, axis: int) -> Uses | None:
    x, shape = node.args[:2]
    assert isinstance(shape, list | tuple)
    return _broadcast(node, axis, [x]) if axis < _rank(node) - len(shape) else None


def _quantization(node: fx.Node, axis: int) -> Uses | None:
    return _broadcast(node, axis, node.args[:3]) if node.args[3] is None else None


def _lookup(node: fx.Node, axis: int) -> Uses | None:
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    indices = node.args[names.index("indices")]
    assert isinstance(indices, fx.Node)
    return (Use(indices, axis),) if axis < _rank(indices) else None


# ── ops that move values, or sum them, within tokens ──────────────────────────────────────────────────────────────


def _along(position: int) -> Rule:
    """Return the rule of ops that keep the rank and act along the axis, or axes, that argument `position` names."""

    def rule(node: fx.Node, axis: int) -> Uses | None:
        x, dims = node.args[0], node.args[position]
        assert isinstance(x, fx.Node)
        named = {_axis(dim, _rank(x)) for dim in (dims if isinstance(dims, list | tuple) else [dims])}
        return (Use(x, axis),) if 0 not in named and axis not in named and axis < _rank(x) else None

    return rule


def _reduction(node: fx.Node, axis: int) -> Uses | None:
    x, dims, keep = node.args[:3]
    if dims is None or dims == []:
        return None
    rank = _rank(x)
    named = sorted(_axis(dim, rank) for dim in (dims if isinstance(dims, list | tuple) else [dims]))
    own = axis if keep else _after_removal(axis, named)
    return (Use(x, own),) if 0 not in named and own not in named and own < rank else None  # type: ignore[arg-type]


def _after_removal(axis: int, removed: Iterable[int]) -> int:
    """Return the axis that became `axis` when those in `removed`, which rise, were taken out."""
    for each in removed:
        axis += each <= axis
    return axis


def _select(node: fx.Node, axis: int) -> Uses | None:
    x, dim = node.args[:2]
    removed = _axis(dim, _rank(x))
    own = _after_removal(axis, [removed])
    return (Use(x, own),) if removed and own < _rank(x) else None  # type: ignore[arg-type]


def _unsqueeze(node: fx.Node, axis: int) -> Uses | None:
    x, dim = node.args[:2]
    added = _axis(dim, _rank(x) + 1)
    own = axis - (added < axis)
    return (Use(x, own),) if added and axis != added and own else None  # type: ignore[arg-type]


def _transpose(node: fx.Node, axis: int) -> Uses | None:
    x, *dims = node.args[:3]
    a, b = (_axis(dim, _rank(x)) for dim in dims)
    own = {a: b, b: a}.get(axis, axis)
    return (Use(x, own),) if a and b and axis < _rank(x) else None  # type: ignore[arg-type]


def _permute(node: fx.Node, axis: int) -> Uses | None:
    x, dims = node.args[:2]
    assert isinstance(dims, list | tuple)
    order = [_axis(dim, len(dims)) for dim in dims]
    return (Use(x, order[axis]),) if order[0] == 0 and axis < len(order) else None  # type: ignore[arg-type]


def _reshape(node: fx.Node, axis: int) -> Uses | None:
    """Axes behind the tokens may be split and joined: all up to them stay, and the sizes of the others are fixed."""
    x = node.args[0]
    assert isinstance(x, fx.Node)
    before, after = edit.info(x), edit.info(node)
    if before is None or after is None or axis >= min(len(before.shape), len(after.shape)):
        return None
    same = before.shape[: axis + 1] == after.shape[: axis + 1]
    flags = before.dynamic[: axis + 1] == after.dynamic[: axis + 1]
    return (Use(x, axis),) if same and flags and _is_fixed(node, axis) else None


def _is_fixed(node: fx.Node, axis: int) -> bool:
    """Say whether no size but those of the sequences and the tokens may vary."""
    return all(size is not None for place, size in enumerate(_shape(node) or ()) if place not in (0, axis))


def _unflatten(node: fx.Node, axis: int) -> Uses | None:
    x, dim = node.args[:2]
    return (Use(x, axis),) if axis < _axis(dim, _rank(x)) else None  # type: ignore[arg-type]


def _expand(node: fx.Node, axis: int) -> Uses | None:
    return _broadcast(node, axis, node.args[:1]) if _is_fixed(node, axis) else None


def _concatenation(node: fx.Node, axis: int) -> Uses | None:
    parts, dim = node.args[:2]
    assert isinstance(parts, list | tuple)
    joined = _axis(dim, _rank(node))
    shapes = [_shape(part) for part in parts]
    whole = all(shape is not None and axis < len(shape) for shape in shapes)
    return tuple(Use(part, axis) for part in parts) if whole and joined not in (0, axis) else None  # type: ignore[arg-type]


def _item(node: fx.Node, axis: int) -> Uses | None:
    source = node.args[0]
    return (Use(source, axis),) if isinstance(source, fx.Node) and RULES.get(source.target) is _SPLIT else None


_LINEAR = _rows("x", "input", "residual", "x_scale", "x_zero_point")
_SPLIT = _along(2)

RULES: dict[Any, Rule] = {
    ops.x86_packed_linear_dynamic_int8.default: _LINEAR,
    ops.x86_packed_linear_int8.default: _LINEAR,
    ops.x86_linear_dynamic_int8.default: _LINEAR,
    ops.x86_linear_int8.default: _LINEAR,
    ops.x86_linear_weight_int8.default: _LINEAR,
    aten.linear.default: _LINEAR,
    ops.x86_rows_embedding_int8.default: _lookup,
    ops.x86_embedding_int8.default: _lookup,
    aten.embedding.default: _lookup,
    ops.x86_quantize.default: _rows("x"),
    ops.quantize.default: _quantization,
    ops.dequantize.default: _quantization,
    aten.layer_norm.default: _norm,
    aten.rms_norm.default: _norm,
    aten.to.dtype: _pointwise,
    aten.where.ScalarOther: _pointwise,
    aten.where.ScalarSelf: _pointwise,
    aten.softmax.int: _along(1),
    aten.log_softmax.int: _along(1),
    aten.slice.Tensor: _along(1),
    aten.split.Tensor: _SPLIT,
    aten.split_with_sizes.default: _SPLIT,
    aten.chunk.default: _SPLIT,
    operator.getitem: _item,
    aten.cat.default: _concatenation,
    aten.reshape.default: _reshape,
    aten.expand.default: _expand,
    aten.unflatten.int: _unflatten,
    aten.unsqueeze.default: _unsqueeze,
    aten.squeeze.dim: _select,
    aten.select.int: _select,
    aten.transpose.int: _transpose,
    aten.permute.default: _permute,
    aten.mean.dim: _reduction,
    aten.sum.dim_IntList: _reduction,
    aten.amax.default: _reduction,
    aten.argmax.default: _reduction,
}
