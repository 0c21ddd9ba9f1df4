"""Which ops of a graph can run on the tokens of a batch alone, without its padding.

A region grows from the attentions with one mask of padded keys: to what they read, as long as each token is treated by
itself, and to what reads them. It ends at values that are packed, and at readers that are served with padding.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import fx

from fxquant.graph import edit
from fxquant.passes.token_exits import ATTENTION, Exit, exit_of
from fxquant.passes.token_rules import Use, is_lookup, is_view, result_axis, token_operands


@dataclass(frozen=True)
class Region:
    """Ops that run packed, with the axis of tokens in their results; what comes in, and who is served outside.

    `entries` hold what is packed and who of the region reads it; `exits` a reader, the value it reads and how it is
    served.
    """

    mask: fx.Node
    attentions: tuple[fx.Node, ...]
    tokens: dict[fx.Node, int]
    entries: dict[Use, list[fx.Node]]
    exits: tuple[tuple[fx.Node, fx.Node, Exit], ...]


@dataclass(frozen=True)
class _Grown:
    tokens: dict[fx.Node, int]
    entries: dict[Use, list[fx.Node]]  # and who reads them
    leaving: list[tuple[fx.Node, fx.Node]]  # who reads, and what


def find_region(mask: fx.Node, attentions: list[fx.Node]) -> Region | str:
    """Return the region of the attentions with one mask, or why there is none."""
    later = dependents(attentions)
    barred: set[fx.Node] = set()
    while True:
        grown = _grow(mask, attentions, barred)
        exits = [(user, value, exit_of(user, value, grown.tokens[value], mask)) for user, value in grown.leaving]
        stuck = {value: f"{_where(user)} would read padding" for user, value, how in exits if how is None}
        stuck |= {
            user: f"{_where(use.value)} is not laid out as {mask.name}"
            for use, users in grown.entries.items()
            for user in users
            if not _fits(use, mask)
        }
        if not stuck:
            served = tuple((user, value, how) for user, value, how in exits if how is not None)
            return Region(mask, tuple(attentions), grown.tokens, grown.entries, served)
        # What stands before all attentions may as well be computed with padding, and packed then.
        hopeless = [reason for node, reason in stuck.items() if node in later]
        if hopeless:
            return hopeless[0]
        barred |= set(stuck)


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
            found = None if user in barred else _found(user, node, axis, attentions)
            if found is None:
                grown.leaving.append((user, node))
            else:
                waiting.append((user, found))
    return _settled(grown)


def _uses(node: fx.Node, axis: int, attentions: list[fx.Node]) -> tuple[Use, ...]:
    if node in attentions:
        return tuple(Use(value, 1) for value in node.args[:3] if isinstance(value, fx.Node))
    return token_operands(node, axis) or ()


def _found(user: fx.Node, node: fx.Node, axis: int, attentions: list[fx.Node]) -> int | None:
    """Return where the tokens of `node` lie in the result of its reader, if that treats each by itself."""
    if user in attentions:
        return 1 if axis == 1 else None
    return result_axis(user, node, axis)


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


def attends_to_itself(node: fx.Node) -> bool:
    """Say whether the queries and the keys of an attention come from the same tokens, for all sizes of the batch."""
    query, key, _ = node.args[:3]
    if key is None:
        return True
    assert isinstance(query, fx.Node) and isinstance(key, fx.Node)
    return bool(_sources(query) & _sources(key))


def _sources(value: fx.Node) -> set[fx.Node]:
    """Return what a value's tokens are computed from, one by one: not through attention, nor what sequences share."""
    found: set[fx.Node] = set()
    waiting = [Use(value, 1)]
    while waiting:
        use = waiting.pop()
        known = edit.info(use.value)
        if use.value in found or use.missing or (known is not None and known.shape[0] == 1 and not known.dynamic[0]):
            continue
        found.add(use.value)
        waiting.extend(token_operands(use.value, use.axis) or ())
    return found


def padded_attentions(gm: fx.GraphModule) -> dict[fx.Node, list[fx.Node]]:
    """Return the attentions within sequences by their mask of padded keys, a bool (B, S)."""
    groups: dict[fx.Node, list[fx.Node]] = {}
    for node in gm.graph.find_nodes(op="call_function", target=ATTENTION):
        mask, offsets = node.args[3:5]
        known, result = edit.info(mask) if isinstance(mask, fx.Node) else None, edit.info(node)
        if known is None or result is None or offsets is not None:
            continue
        if known.dtype is torch.bool and known.shape == result.shape[:2] and attends_to_itself(node):
            groups.setdefault(mask, []).append(node)
    return groups
