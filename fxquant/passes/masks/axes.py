"""What tensors of ramps and constants hold, and where ops that insert, move, cut or gather along axes take a term."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from fxquant.graph import edit
from fxquant.passes.masks.reader import Meaning, Reader, constant, rank
from fxquant.passes.masks.terms import Affine, Element, Term, as_condition, index, moved

aten = torch.ops.aten


def _filled(value: float) -> Meaning:
    return lambda reader, node: _full_of(node, value)


def _filled_by(argument: int) -> Meaning:
    return lambda reader, node: _full_of(node, node.args[argument])


def _full_of(node: fx.Node, value: Any) -> Term | None:
    known = edit.info(node)
    if known is None or not isinstance(value, bool | int | float):
        return None
    if known.dtype is torch.bool:
        return constant(bool(value))
    return constant(float(value) if known.dtype.is_floating_point else int(value))


def _arange(reader: Reader, node: fx.Node) -> Term | None:
    numbers = node.args
    start, step = (0, 1) if len(numbers) == 1 else (numbers[0], numbers[2] if len(numbers) > 2 else 1)
    whole = isinstance(start, int) and isinstance(step, int)
    return Affine((), start).plus(index(0), step) if whole else None  # type: ignore[arg-type]


def _axis(value: Any, count: int) -> int:
    return int(value) % count


def _unsqueeze(reader: Reader, node: fx.Node) -> Term | None:
    new, term = _axis(node.args[1], rank(node)), reader.read(node.args[0])
    return None if term is None else moved(term, lambda axis: index(axis + (axis >= new)))


def _permuted(reader: Reader, node: fx.Node, order: Sequence[int]) -> Term | None:
    """Return the term where axis i of the result is axis order[i] of the source."""
    term = reader.read(node.args[0])
    return None if term is None else moved(term, lambda axis: index(order.index(axis)))


def _permute(reader: Reader, node: fx.Node) -> Term | None:
    order: Any = node.args[1]
    return _permuted(reader, node, [_axis(each, rank(node)) for each in order])


def _transpose(reader: Reader, node: fx.Node) -> Term | None:
    order = list(range(rank(node)))
    a, b = (_axis(each, rank(node)) for each in node.args[1:])
    order[a], order[b] = b, a
    return _permuted(reader, node, order)


def _expand(reader: Reader, node: fx.Node) -> Term | None:
    return reader.aligned(node.args[0], node)


def _reshape(reader: Reader, node: fx.Node) -> Term | None:
    """Return the term where nothing but axes of size 1 comes or goes."""
    before, after = _long_axes(node.args[0]), _long_axes(node)
    term = reader.read(node.args[0])
    if term is None or [size for _, size in before] != [size for _, size in after]:
        return None
    new = {old: axis for (old, _), (axis, _) in zip(before, after, strict=True)}
    return moved(term, lambda axis: index(new[axis]))


def _long_axes(value: Any) -> list[tuple[int, tuple[int, bool]]]:
    """Return the axes that are not of size 1, with what is known of their sizes."""
    known = edit.info(value)
    sizes = zip(known.shape, known.dynamic, strict=True) if known else ()
    return [(axis, size) for axis, size in enumerate(sizes) if size != (1, False)]


def _slice(reader: Reader, node: fx.Node) -> Term | None:
    source, along, start, _, step = node.args
    term, first = reader.read(source), 0 if start is None else start
    if term is None or not isinstance(first, int) or first < 0 or step != 1:
        return None
    cut = _axis(along, rank(node))
    return moved(term, lambda axis: index(axis).plus(Affine((), first if axis == cut else 0)))


def _select(reader: Reader, node: fx.Node) -> Term | None:
    source, along, place = node.args
    term, cut = reader.read(source), _axis(along, rank(node) + 1)
    if term is None or not isinstance(place, int) or place < 0:
        return None
    return moved(term, lambda axis: Affine((), place) if axis == cut else index(axis - (axis > cut)))


def _gather(reader: Reader, node: fx.Node) -> Term | None:
    """Return the term of a look-up with one tensor of indices for each axis; indices below 0 count from the end."""
    source, indices = node.args
    assert isinstance(indices, Sequence)
    term, places = reader.read(source), [reader.aligned(each, node) for each in indices]
    found = [each for each in places if isinstance(each, Affine) and _from_the_start(each)]
    if term is None or len(found) != len(places) or len(found) != rank(source):
        return None
    return moved(term, lambda axis: found[axis])


def _from_the_start(place: Affine) -> bool:
    return place.constant >= 0 and all(factor > 0 for _, factor in place.factors)


def _same(reader: Reader, node: fx.Node) -> Term | None:
    return reader.read(node.args[0])


def _cast(reader: Reader, node: fx.Node) -> Term | None:
    """Return the term of a cast that keeps whole numbers and conditions what they are."""
    term, known, source = reader.read(node.args[0]), edit.info(node), node.args[0]
    before = edit.info(source) if isinstance(source, fx.Node) else None
    if term is None or known is None or before is None:
        return None
    if known.dtype is torch.bool:
        # The cast is the tensor of truth values that a kernel reads.
        return None if isinstance(term, Element) else as_condition(term)
    return term if known.dtype.is_floating_point or not before.dtype.is_floating_point else None


AXES: dict[Any, Meaning] = {
    aten.arange.default: _arange,
    aten.arange.start: _arange,
    aten.arange.start_step: _arange,
    aten.ones.default: _filled(1),
    aten.new_ones.default: _filled(1),
    aten.ones_like.default: _filled(1),
    aten.zeros.default: _filled(0),
    aten.new_zeros.default: _filled(0),
    aten.zeros_like.default: _filled(0),
    aten.scalar_tensor.default: _filled_by(0),
    aten.full.default: _filled_by(1),
    aten.full_like.default: _filled_by(1),
    aten.new_full.default: _filled_by(2),
    aten.unsqueeze.default: _unsqueeze,
    aten.permute.default: _permute,
    aten.transpose.int: _transpose,
    aten.expand.default: _expand,
    aten.reshape.default: _reshape,
    aten.squeeze.dim: _reshape,
    aten.slice.Tensor: _slice,
    aten.select.int: _select,
    aten.index.Tensor: _gather,
    aten.alias.default: _same,
    aten.detach.default: _same,
    aten.clone.default: _same,
    aten.contiguous.default: _same,
    aten.to.dtype: _cast,
}
