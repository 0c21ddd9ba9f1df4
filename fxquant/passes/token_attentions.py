"""Which attentions of a graph are within padded sequences, by the mask that says where their padding is."""

import torch
from torch import fx

from fxquant.graph import edit
from fxquant.passes.token_exits import ATTENTION
from fxquant.passes.token_rules import token_operands
from fxquant.passes.token_views import Use


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
