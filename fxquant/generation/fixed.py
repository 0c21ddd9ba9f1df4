"""A decoder's step on caches of a fixed length: each token's call has one shape, and can be recorded.

A step puts the keys and values of new tokens behind those of a cache, which grows. Here they are written to a place
among others that hold nothing yet, which a mask hides. To attention the order of its keys is nothing, so the result is
the same, provided that a step knows the length of its cache by its masks alone; where it does not, `fixed` says so.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxquant.errors import FxQuantError
from fxquant.graph import edit
from fxquant.passes.masks.reader import Reader
from fxquant.passes.masks.terms import Affine, Element
from fxquant.passes.simplify_masks import ATTENTION, BATCH, CAUSAL, KEY, MASK, MEANINGS, Meaning, meaning_of

aten = torch.ops.aten
_POSITION = 2  # the axis of a cache along which tokens lie
_OF_BATCH_AND_KEY = (Affine(((BATCH, 1),), 0), Affine(((KEY, 1),), 0))
# They take sizes as the shape of what they give, not as numbers to compute with.
_SHAPES = (aten.reshape.default, aten.view.default, aten.expand.default)


class FixedStep(nn.Module):
    """A step for one token of each sequence, whose caches are buffers (batch, heads, length, size).

    Args:
        step: the graph of a step; left as it is, its tensors are shared.
        like: the tensors of a cache, by name, for their sizes but the length.
        length: for how many tokens there are places.

    Raises:
        FxQuantError: the step's result depends on the length of its cache by more than what its masks hide.
    """

    def __init__(self, step: fx.GraphModule, like: dict[str, Tensor], length: int) -> None:
        super().__init__()
        self.names, self.length = tuple(like), length
        some = next(iter(like.values()))
        with torch.inference_mode(False):
            kept = {name: each.new_zeros((*each.shape[:2], length, each.shape[3])) for name, each in like.items()}
            place = torch.zeros(1, dtype=torch.int64, device=some.device)
            self.graph = fixed(step, kept, place)
        self.caches, self.place = kept, place

    def forward(self, place: Tensor, attention_mask: Tensor, **inputs: Tensor) -> Tensor:
        """Return the logits after one token, whose keys and values are kept at `place`, (1,).

        `attention_mask` is (batch, length), not 0 where a token is, the new one among them.
        """
        self.place.copy_(place)
        # Of these the graph reads the size: one less than there are with the new token's.
        past = {name: kept[:, :, 1:] for name, kept in self.caches.items()}
        logits: Tensor = self.graph(attention_mask=attention_mask, **inputs, **past)["logits"]
        return logits

    def fill(self, past: dict[str, Tensor]) -> None:
        """Keep a cache of no more tokens than there are places, from the first place on."""
        for name, tensor in past.items():
            self.caches[name][:, :, : tensor.shape[_POSITION]].copy_(tensor)

    def filled(self, tokens: int) -> dict[str, Tensor]:
        """Return the caches of so many tokens, in the memory of the buffers."""
        return {name: kept[:, :, :tokens] for name, kept in self.caches.items()}


def fixed(step: fx.GraphModule, kept: dict[str, Tensor], place: Tensor) -> fx.GraphModule:
    """Return the graph of a step that writes keys and values into `kept` at `place` (1,), in place of joining them.

    Raises:
        FxQuantError: as for `FixedStep`.
    """
    gm = edit.clone(step)
    inputs = {node.name: node for node in gm.graph.find_nodes(op="placeholder")}
    caches, mask = [inputs[name] for name in kept], inputs["attention_mask"]
    meanings = list(_meanings(gm, caches, mask))
    first = list(inputs.values())[-1].next
    where = edit.add_constant(gm, "fixed_place", place, first)
    places = torch.arange(next(iter(kept.values())).shape[_POSITION], device=place.device)
    masks = _Masks(mask, where, edit.add_constant(gm, "fixed_places", places, first), first)
    for node, meaning in meanings:
        node.update_arg(MASK[ATTENTION], masks.of(meaning.window))
    for cache in caches:
        _write(gm, cache, edit.add_constant(gm, f"fixed_{cache.name}", kept[cache.name], first), where)
    edit.sweep(gm)
    _check_free(gm, caches, mask)
    gm.recompile()
    return gm


class _Masks:
    """Makes the mask of each window once: where a token is, of the last so many alone."""

    def __init__(self, mask: fx.Node, place: fx.Node, places: fx.Node, before: fx.Node) -> None:
        self.mask, self.place, self.places, self.before = mask, place, places, before
        self.made: dict[int | None, fx.Node] = {}

    def of(self, window: int | None) -> fx.Node:
        if window not in self.made:
            self.made[window] = self._all() if window is None else self._last(window)
        return self.made[window]

    def _all(self) -> fx.Node:
        return self._call(aten.ne.Scalar, self.mask, 0)

    def _last(self, window: int) -> fx.Node:
        # The query is at the new token's place p: of the keys before it those from p − window + 1 on.
        behind = self._call(aten.sub.Tensor, self.place, self.places, alpha=1)
        return self._call(aten.logical_and.default, self.of(None), self._call(aten.lt.Scalar, behind, window))

    def _call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        with self.before.graph.inserting_before(self.before):
            return edit.call(self.before.graph, target, args, like=self.mask, value=None, **kwargs)


def _meanings(gm: fx.GraphModule, caches: Sequence[fx.Node], mask: fx.Node) -> Iterator[tuple[fx.Node, Meaning]]:
    """Yield the attentions to caches, with what their masks say."""
    reader = Reader(gm, MEANINGS)
    for node in gm.graph.find_nodes(op="call_function", target=ATTENTION):
        given: Any = node.args
        meaning = (
            "it hides no padding" if given[MASK[ATTENTION]] is None else meaning_of(reader, given[MASK[ATTENTION]])
        )
        if isinstance(meaning, str):
            raise _refused(node, meaning)
        if not _ends_a_cache(meaning.diagonal, caches) or given[CAUSAL[ATTENTION]]:
            raise _refused(node, "its queries do not see the whole cache")
        if not _is_padding(meaning.padding, mask):
            raise _refused(node, "it hides other keys than those of padding")
        yield node, meaning


def _ends_a_cache(diagonal: fx.Node | int | None, caches: Sequence[fx.Node]) -> bool:
    """Say whether a diagonal is the length of a cache."""
    if not isinstance(diagonal, fx.Node) or diagonal.target is not aten.sym_size.int:
        return False
    return diagonal.args[0] in caches and bool(diagonal.args[1] == _POSITION)


def _is_padding(padding: Element | None, mask: fx.Node) -> bool:
    if padding is None or padding.zero or padding.places != _OF_BATCH_AND_KEY:
        return False
    source: Any = padding.node
    while source.target is aten.to.dtype:
        source = source.args[0]
    return source is mask


def _write(gm: fx.GraphModule, cache: fx.Node, kept: fx.Node, place: fx.Node) -> None:
    """Let what joined new keys or values to a cache write them among those kept."""
    joined = [user for user in cache.users if user.target is not aten.sym_size.int]
    for node in joined:
        parts: Any = node.args[0]
        if node.target is not aten.cat.default or parts[0] is not cache or node.args[1] not in (-2, _POSITION):
            raise _refused(node, f"it reads %{cache.name}, and does not join new ones to it")
        if len(parts) != 2:
            raise _refused(node, f"it joins {len(parts)} parts")
        with gm.graph.inserting_before(node):
            args = (kept, _POSITION, place, parts[1])
            written = edit.call(gm.graph, aten.index_copy_.default, args, like=node, value=edit.info(kept))
        edit.replace(node, written)


def _check_free(gm: fx.GraphModule, caches: Sequence[fx.Node], mask: fx.Node) -> None:
    """Raise where the length of a cache, or the mask, still reaches a result: but as a shape, or as the new masks."""
    reached = {user for cache in caches for user in cache.users if user.args[1] == _POSITION} | {mask}
    for node in gm.graph.nodes:
        given: Any = node.args
        if node in reached or not any(each in reached for each in node.all_input_nodes):
            continue
        if node.op == "output" or node.target is aten.index_copy_.default:
            raise _refused(node, "it depends on how many tokens there are, by more than what masks hide")
        as_mask = node.target is ATTENTION and reached.isdisjoint(each for each in given[:3] if each is not None)
        as_shape = node.target in _SHAPES and given[0] not in reached
        if not (as_mask or as_shape):
            reached.add(node)


def _refused(node: fx.Node, why: str) -> FxQuantError:
    at = edit.path_of(node) or "the model"
    return FxQuantError(f"the step cannot be given a cache of fixed length: %{node.name} of {at}: {why}")
