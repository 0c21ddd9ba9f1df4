"""Masks of four dimensions that say less than they could: nothing at all, causal, or which keys are padding.

Models build a mask [B, 1, Sq, Sk] by index arithmetic even where no token is padding, and causality never arrives as
a flag. `passes.masks` reads the arithmetic as a condition on (batch, query, key), for every size; where that is

    always                      the mask goes
    key ≤ query                 becomes the flag `causal`
    key ≤ query + cached        becomes the argument `diagonal` of attention with a cache
    and key > that − window     becomes its argument `window`
    |key − query| ≤ n           becomes the flag and both arguments of attention in the C++ core
    an element of (batch, key)  becomes a mask [B, Sk], whose dead keys the kernel leaves out
    all of these at once        become all
    numbers where one of these  become a mask as above and, of attention with a cache, its argument `bias`

and any other mask stays. A float mask that adds 0 to a key or hides it by −1e4 or less counts as such a condition: for
a query of which it hides every key the result is then zeros, as for a boolean mask, and not the mean of the hidden.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from fxquant.graph import edit
from fxquant.graph.edit import TensorInfo
from fxquant.kernels.table import FUSES
from fxquant.passes.masks.arithmetic import ARITHMETIC, HIDDEN, shown
from fxquant.passes.masks.axes import AXES
from fxquant.passes.masks.conditions import CONDITIONS
from fxquant.passes.masks.reader import Reader, rank
from fxquant.passes.masks.terms import (
    Affine,
    All,
    Condition,
    Element,
    Not,
    NotNegative,
    Size,
    Term,
    as_choice,
    as_condition,
    index,
    moved,
    negated,
)

aten = torch.ops.aten
ATTENTION = torch.ops.fxquant.attention.default
CACHED = torch.ops.fxquant.cached_attention.default
CROSS = torch.ops.fxquant.cross_attention.default
SDPA = aten.scaled_dot_product_attention.default
MASK: dict[Any, int] = {ATTENTION: 3, SDPA: 3, CROSS: 3, CACHED: 5}  # where the mask stands among their arguments
CAUSAL: dict[Any, int] = {ATTENTION: 8, SDPA: 5, CACHED: 15}  # and where causality
BIAS, WINDOW = 6, 16  # of attention with a cache alone
BATCH, QUERY, KEY = 0, 2, 3
MEANINGS = {**AXES, **CONDITIONS, **ARITHMETIC}


@dataclass(frozen=True)
class Meaning:
    """What a mask says: that keys after the query are hidden, from how far on, and where a key takes part.

    `diagonal` d hides keys j > i + d from query i; None hides none. It is a number or the node of a size. `window` w
    hides keys j ≤ i + d − w, too.
    """

    diagonal: fx.Node | int | None
    padding: Element | None
    window: int | None = None


@dataclass(frozen=True)
class SimplifyMasks:
    """Give attention the smallest mask that means the same; what a mask that stays depends on is marked on it."""

    name: ClassVar[str] = "simplify_masks"
    after: ClassVar[tuple[str, ...]] = ("lower", "fuse_attention")

    def apply(self, gm: fx.GraphModule) -> int:
        """Return how many attentions were given a smaller mask."""
        reader, made, count = Reader(gm, MEANINGS), dict[Any, fx.Node](), 0
        for node in list(gm.graph.nodes):
            mask = node.args[MASK[node.target]] if node.target in MASK else None
            if mask is None or (node.target is not SDPA and rank(mask) != 4):  # none, or one of padding already
                continue
            meaning, bias = meaning_of(reader, mask), None
            if isinstance(meaning, str) and node.target is CACHED:
                meaning, bias = _apart(reader, mask, meaning)
            kept = meaning if isinstance(meaning, str) else _unable(gm, node, meaning)
            if kept is None and isinstance(meaning, Meaning):
                _give(node, meaning, made)
            if bias is not None and kept is None:
                node.update_arg(BIAS, _with_four(node, bias))
            edit.mark(node, mask=kept)
            count += kept is None
        edit.sweep(gm)
        return count


def meaning_of(reader: Reader, mask: fx.Node) -> Meaning | str:
    """Return what a mask says, or what it depends on beside causality and padding."""
    return _meaning(mask, _condition(mask, reader.read(mask)))


def _meaning(mask: fx.Node, condition: Condition | None) -> Meaning | str:
    if not isinstance(condition, All):
        return f"%{mask} adds other numbers than 0 and those that hide a key, or is no condition that is known"
    paddings = [part for part in condition.parts if isinstance(part, Element)]
    order = _order([part.value for part in condition.parts if isinstance(part, NotNegative)])
    if order is None or len(paddings) > 1:
        return f"%{mask} depends on more than the order of query and key and one padding mask"
    padding = paddings[0] if paddings else None
    if padding is not None and [each for each in padding.places if each.factors] not in ([_B, _K], [_K]):
        return f"%{mask} depends on %{padding.node} by more than batch and key"
    return Meaning(order[0], padding, order[1])


Order = tuple[fx.Node | int | None, int | None]


def _order(bounds: list[Affine]) -> Order | None:
    """Return diagonal and window of the condition that some numbers are not negative; None for any other condition."""
    ahead = [(bound, found) for bound in bounds if (found := _diagonal(bound)) is not None]
    behind = [bound for bound in bounds if all(bound is not known for known, _ in ahead)]
    if len(ahead) > 1 or len(behind) > len(ahead) or len(behind) > 1:
        return None
    if not behind:
        return (ahead[0][1], None) if ahead else (None, None)
    bound, diagonal = ahead[0]
    match bound.plus(behind[0]):  # query + d − key ≥ 0 and key − query − d + w − 1 ≥ 0
        case Affine((), constant) if constant >= 0:
            return diagonal, constant + 1
    return None


def _diagonal(value: Affine) -> fx.Node | int | None:
    """Return d of the condition that key ≤ query + d, a number or the node of a size; None for any other."""
    match value.plus(_Q, -1).plus(_K):
        case Affine((), constant):
            return constant
        case Affine(((Size(node), 1),), 0):
            return node
    return None


def _apart(reader: Reader, mask: fx.Node, reason: str) -> tuple[Meaning | str, fx.Node | None]:
    """Return what a mask says and what it adds to the scores of the keys that it shows, or the reason why not."""
    for bias, hiding in _sums(reader, mask):
        meaning = reason if hiding is None else _meaning(mask, _over_four(mask, hiding))
        known = edit.info(bias)
        if not isinstance(meaning, str) and known is not None and known.dtype is torch.float32:
            return meaning, bias
    return reason, None


def _sums(reader: Reader, mask: fx.Node) -> Iterator[tuple[fx.Node, Condition | None]]:
    """Yield numbers that a mask may be made of, with the condition that shows them: others hide a key."""
    args: Any = mask.args
    if mask.target is aten.add.Tensor and mask.kwargs["alpha"] == 1:
        for bias, other in (args, args[::-1]):
            term = reader.aligned(other, mask)
            if isinstance(bias, fx.Node) and term is not None:
                yield bias, shown(term)
    for target, (test, bias, number, wanted) in CHOICES.items():
        if mask.target is target and isinstance(args[bias], fx.Node) and _hides(reader, args[number], mask):
            term = reader.aligned(args[test], mask)
            condition = None if term is None else as_condition(term)
            yield args[bias], condition if wanted or condition is None else negated(condition)


# Choices between two operands: where the test, the numbers and what hides keys stand, and whether the test shows them.
CHOICES: dict[Any, tuple[int, int, int, bool]] = {
    aten.where.self: (0, 1, 2, True),
    aten.where.ScalarOther: (0, 1, 2, True),
    aten.where.ScalarSelf: (0, 2, 1, False),
    aten.masked_fill.Scalar: (1, 0, 2, False),
    aten.masked_fill.Tensor: (1, 0, 2, False),
}


def _hides(reader: Reader, number: Any, mask: fx.Node) -> bool:
    term = reader.aligned(number, mask)
    choice = None if term is None else as_choice(term)
    return choice is not None and max(choice.yes, choice.no) <= HIDDEN


_B, _Q, _K = index(BATCH), index(QUERY), index(KEY)


def _condition(mask: fx.Node, term: Term | None) -> Condition | None:
    """Return where a mask of this term lets a key take part, over (batch, head, query, key)."""
    known = edit.info(mask)
    if term is None or known is None:
        return None
    return _over_four(mask, as_condition(term) if known.dtype is torch.bool else shown(term))


def _over_four(mask: fx.Node, condition: Condition | None) -> Condition | None:
    found = None if condition is None else moved(condition, lambda axis: index(axis + 4 - rank(mask)))
    return found if isinstance(found, All | Not) else None


def _unable(gm: fx.GraphModule, node: fx.Node, meaning: Meaning) -> str | None:
    """Return what an attention has no argument for of what its mask means."""
    # The C++ core knows windows around a query, but sizes as offsets only where there is a cache.
    core = node.target is ATTENTION and edit.marks(gm).get("kernels", "") not in FUSES
    windows = node.target is CACHED or (core and isinstance(meaning.diagonal, int | None))
    if not windows and meaning.diagonal not in (None, 0):
        return "it depends on more than the order of query and key: an offset between them, which takes a cache"
    if not windows and meaning.window is not None:
        return "it shows the last keys of each query alone, which takes a cache"
    if node.target is CROSS and meaning.diagonal is not None:
        return "it depends on the order of query and key, which attention to a source has none of"
    if node.target is SDPA and meaning.diagonal is not None and meaning.padding is not None:
        return "causal and padding: aten.scaled_dot_product_attention takes one of both"
    return None


def _give(node: fx.Node, meaning: Meaning, made: dict[Any, fx.Node]) -> None:
    """Give an attention the mask that it needs."""
    padding = None
    if meaning.padding is not None:
        sizes = [_size_of(*place) for place in _sizes(node)]
        key = (meaning.padding, *(sizes if None not in sizes else (node.args[MASK[node.target]],)))
        if key not in made:
            made[key] = _padding_mask(node, meaning.padding)
        padding = made[key]
    if node.target is SDPA and padding is not None:
        padding = _unsqueezed(node, padding, 1, 1)
    node.update_arg(MASK[node.target], padding)
    if meaning.diagonal is not None:
        node.update_arg(CAUSAL[node.target], meaning.diagonal if node.target is CACHED else True)
    if node.target is ATTENTION and (meaning.diagonal or meaning.window is not None):
        node.args = (*node.args[:9], meaning.diagonal, meaning.window, None)
    elif meaning.window is not None:
        node.update_arg(WINDOW, meaning.window)


def _sizes(node: fx.Node) -> tuple[tuple[fx.Node, int], ...]:
    """Return a tensor and axis whose size is the batch's, and one for the number of keys.

    Attention with a cache has none for these: of a larger mask it reads the first rows and columns.
    """
    if node.target is CACHED:
        return ()
    query, key = node.args[0], node.args[1] or node.args[0]
    assert isinstance(query, fx.Node) and isinstance(key, fx.Node)
    return (query, 0), (key, 1 if node.target is ATTENTION else 2)


def _padding_mask(node: fx.Node, padding: Element) -> fx.Node:
    """Insert what makes a boolean mask [B, Sk] of the element's tensor, of which it may use a part."""
    mask, cut = padding.node, 0
    for axis, place in enumerate(padding.places):
        if not place.factors:
            mask = _call(node, aten.select.int, mask, axis - cut, place.constant)
            cut += 1
    if len(padding.places) - cut == 1:
        mask = _unsqueezed(node, mask, 0)
    else:
        for other, of in _sizes(node)[:1]:
            mask = _cut(node, mask, 0, padding.node, padding.places.index(_B), other, of)
    for other, of in _sizes(node)[1:]:
        mask = _cut(node, mask, 1, padding.node, padding.places.index(_K), other, of)
    known = edit.info(padding.node)
    if known is not None and known.dtype is not torch.bool:
        return _call(node, aten.eq.Scalar if padding.zero else aten.ne.Scalar, mask, 0)
    return _call(node, aten.logical_not.default, mask) if padding.zero else mask


def _cut(node: fx.Node, mask: fx.Node, axis: int, source: fx.Node, along: int, other: fx.Node, of: int) -> fx.Node:
    """Cut an axis of the mask to the size of another tensor's, unless the graph shows them to be the same."""
    size = _size_of(other, of)
    if size is not None and size == _size_of(source, along):
        return mask
    known = [each for each in node.graph.find_nodes(op="call_function", target=aten.sym_size.int) if each < node]
    found = [each for each in known if size is not None and _expression(each.meta.get("val")) == size]
    end = found[0] if found else _call(node, aten.sym_size.int, other, of)
    return _call(node, aten.slice.Tensor, mask, axis, 0, end, 1)


def _size_of(node: fx.Node, axis: int) -> Any:
    """Return a size as a number or an expression of the graph's symbols; None where these are not known."""
    value = node.meta.get("val")
    return _expression(value.shape[axis]) if isinstance(value, torch.Tensor) else None


def _expression(size: Any) -> Any:
    return size.node.expr if isinstance(size, torch.SymInt) else size


def _unsqueezed(node: fx.Node, mask: fx.Node, *axes: int) -> fx.Node:
    for axis in axes:
        mask = _call(node, aten.unsqueeze.default, mask, axis)
    return mask


def _with_four(node: fx.Node, bias: fx.Node) -> fx.Node:
    return _unsqueezed(node, bias, *[0] * (4 - rank(bias)))


def _call(node: fx.Node, target: Any, *args: Any) -> fx.Node:
    with node.graph.inserting_before(node):
        return edit.call(node.graph, target, args, like=node, value=_info(target, args))


def _info(target: Any, args: tuple[Any, ...]) -> TensorInfo | None:
    """Return what is known of the result of an op on a mask."""
    known = edit.info(args[0])
    if known is None or target is aten.sym_size.int:
        return None
    shape, dynamic = list(known.shape), list(known.dynamic)
    if target is aten.unsqueeze.default:
        shape.insert(args[1], 1)
        dynamic.insert(args[1], False)
    elif target is aten.select.int:
        del shape[args[1]], dynamic[args[1]]
    dtype = known.dtype if target in (aten.slice.Tensor, aten.select.int, aten.unsqueeze.default) else torch.bool
    return TensorInfo(dtype, tuple(shape), tuple(dynamic))
