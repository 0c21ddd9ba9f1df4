"""Which ops of a graph can run on the tokens of a batch alone, without its padding.

A region grows from the attentions with one mask of padded keys: to what they read, as long as each token is treated by
itself, and to what reads them. It ends at values that are packed, and at readers that are served with padding.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import fx

from fxquant.graph import edit
from fxquant.passes.token_exits import Exit, exit_of
from fxquant.passes.token_rules import is_lookup, is_view, result_axis, token_operands
from fxquant.passes.token_views import Use


@dataclass(frozen=True)
class Region:
    """Ops that run packed, with the axis of tokens in their results; what comes in, and who is served outside.

    `entries` hold what is packed and who of the region reads it; `exits` a reader, the value it reads and how it is
    served. `whole` is an entry whose sizes are those of the padded batch.
    """

    mask: fx.Node
    attentions: tuple[fx.Node, ...]
    tokens: dict[fx.Node, int]
    entries: dict[Use, list[fx.Node]]
    exits: tuple[tuple[fx.Node, fx.Node, Exit], ...]
    whole: Use | None


@dataclass(frozen=True)
class _Grown:
    tokens: dict[fx.Node, int]
    entries: dict[Use, list[fx.Node]]  # and who reads them
    leaving: list[tuple[fx.Node, fx.Node]]  # who reads, and what


def find_region(mask: fx.Node, attentions: list[fx.Node]) -> Region | str:
    """Return the region of the attentions with one mask, or why there is none."""
    known = edit.info(mask)
    if known is not None and known.shape == (1, 1) and not any(known.dynamic):
        return f"the mask {mask.name} is of one place alone, whatever the batch"
    later = dependents(attentions)
    barred: set[fx.Node] = set()
    while True:
        grown = _grow(mask, attentions, barred)
        exits = [(user, value, exit_of(user, value, grown.tokens[value], mask)) for user, value in grown.leaving]
        stuck = {value: f"{_where(user)} would read padding{_why(user)}" for user, value, how in exits if how is None}
        stuck |= {
            user: f"{_where(use.value)} is not laid out as {mask.name}"
            for use, users in grown.entries.items()
            for user in users
            if not _fits(use, mask)
        }
        if not stuck:
            return _region(mask, attentions, grown, [(user, value, how) for user, value, how in exits if how])
        # What stands before all attentions may as well be computed with padding, and packed then.
        hopeless = [reason for node, reason in stuck.items() if node in later]
        if hopeless:
            return hopeless[0]
        barred |= set(stuck)


def _region(
    mask: fx.Node, attentions: list[fx.Node], grown: _Grown, exits: list[tuple[fx.Node, fx.Node, Exit]]
) -> Region | str:
    """Return the region, or why it would stand before itself: what it takes from outside must not depend on it."""
    later = dependents(user for user, _, how in exits if how is not Exit.SIZE)
    if mask in later:
        return f"the mask {mask.name} depends on what it masks"
    whole = [use for use in grown.entries if _is_whole(use, mask) and use.value not in later]
    sizes = [user for user, _, how in exits if how is Exit.SIZE]
    if sizes and not whole:
        return f"{_where(sizes[0])} asks for a size that no input has"
    return Region(mask, tuple(attentions), grown.tokens, grown.entries, tuple(exits), whole[0] if whole else None)


def _is_whole(use: Use, mask: fx.Node) -> bool:
    known, whole = edit.info(use.value), edit.info(mask)
    assert known is not None and whole is not None, "what does not fit is no entry"
    return not use.missing and (known.shape[0], known.shape[use.axis]) == whole.shape


def dependents(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """Return the nodes and all that depends on them."""
    found: set[fx.Node] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(node.users)
    return found


def _where(node: fx.Node) -> str:
    path = edit.path_of(node)
    return f"{node.target} at {path}" if path else str(node.target)


def _why(user: fx.Node) -> str:
    """Return what attention is known to want of padding."""
    reason = edit.marks(user).get("mask")
    return f": {reason}" if reason else ""


def _grow(mask: fx.Node, attentions: list[fx.Node], barred: set[fx.Node]) -> _Grown:
    grown = _Grown({}, {}, [])
    waiting = [(node, 1) for node in attentions]
    while waiting:
        node, axis = waiting.pop()
        if node in grown.tokens:
            if grown.tokens[node] != axis:
                grown.leaving.append((node, node))
            continue
        grown.tokens[node] = axis
        for use in _uses(node, axis, attentions):
            if use.value in attentions or _joins(use, mask, barred):
                waiting.append((use.value, use.axis))
            else:
                grown.entries.setdefault(use, []).append(node)
        for user in node.users:
            found = None if user in barred else _found(user, Use(node, axis), mask, attentions)
            if found is None:
                grown.leaving.append((user, node))
            else:
                waiting.append((user, found))
    return _settled(grown)


def _uses(node: fx.Node, axis: int, attentions: list[fx.Node]) -> tuple[Use, ...]:
    if node in attentions:
        return tuple(Use(value, 1) for value in node.args[:3] if isinstance(value, fx.Node))
    return token_operands(node, axis) or ()


def _found(user: fx.Node, read: Use, mask: fx.Node, attentions: list[fx.Node]) -> int | None:
    """Return where the tokens that a reader is given lie in its result, if it treats each by itself."""
    if user in attentions:
        return 1 if read.axis == 1 else None
    found = result_axis(user, read.value, read.axis)
    repeats = found is not None and edit.info(user) is not None and not _fits(Use(user, found), mask)
    return None if repeats else found


def _joins(use: Use, mask: fx.Node, barred: set[fx.Node]) -> bool:
    """Say whether an operand is computed from packed tokens, too, rather than packed itself.

    Not what all sequences share, as it is less before than behind the packing, nor integers, which are cheap.
    """
    node = use.value
    if use.missing or node in barred or token_operands(node, use.axis) is None:
        return False
    known, whole = edit.info(node), edit.info(mask)
    if known is None or whole is None:  # several results, of which each is looked at by itself
        return True
    if is_view(node):
        return True
    integers = not known.dtype.is_floating_point and known.dtype not in (torch.int8, torch.uint8)
    shared = known.shape[0] == 1 and whole.shape[0] != 1
    return not integers and (not shared or is_lookup(node))


def _fits(use: Use, mask: fx.Node) -> bool:
    """Say whether a value to be packed has the sequences and the tokens of the mask, or one for all."""
    known, whole = edit.info(use.value), edit.info(mask)
    if known is None or whole is None or use.missing > 1:
        return False
    shape = (1,) * use.missing + known.shape
    return shape[0] in (1, whole.shape[0]) and shape[use.axis] in (1, whole.shape[1])


def _settled(grown: _Grown) -> _Grown:
    """Drop the entries that turned out to be computed packed."""
    entries = {}
    for use, users in grown.entries.items():
        if use.value not in grown.tokens:
            entries[use] = users
        elif use.missing or grown.tokens[use.value] != use.axis:
            grown.leaving.extend((user, user) for user in users)
    return _Grown(grown.tokens, entries, grown.leaving)
