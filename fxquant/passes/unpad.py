"""A padded batch runs on its tokens alone where its caller does not read padding: `padded_outputs="zero"`.

Between the token ids and the outputs the batch (B, S) becomes one row of its T tokens; attention keeps the sequences
apart by their offsets. Every token's arithmetic is as before, so its values are equal to the bit; padding gives zeros.
"""

import operator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from fxquant.config import known_name
from fxquant.graph import edit
from fxquant.graph.edit import TensorInfo
from fxquant.passes.token_attentions import padded_attentions
from fxquant.passes.token_exits import ATTENTION, Exit, untested
from fxquant.passes.token_regions import Region, dependents, find_region
from fxquant.passes.token_shapes import describe_packed, exchanged, resize, with_leading_axis
from fxquant.passes.token_views import Use

aten, ops = torch.ops.aten, torch.ops.fxquant
EXACT, ZERO = "exact", "zero"


@dataclass(frozen=True)
class Unpad:
    """Run attention, and the ops around it that treat each token by itself, on packed tokens, if the graph asks for it.

    A graph's fact `padded_outputs` asks: "zero" for unpadding, anything else for none. The fact `unpadded` then holds
    how many ops were unpadded; `padded`, why some or all were not.
    """

    name: ClassVar[str] = "unpad"
    after: ClassVar[tuple[str, ...]] = ("lower", "merge_linears", "fuse_attention", "simplify_masks")

    def apply(self, gm: fx.GraphModule) -> int:
        """Return how many ops run on packed tokens from now on."""
        if edit.marks(gm).get("padded_outputs") != ZERO:
            return 0
        found = [find_region(mask, attentions) for mask, attentions in padded_attentions(gm).items()]
        regions = [each for each in found if isinstance(each, Region)]
        for region in regions:
            _pack(gm, region)
        if regions:
            edit.sort(gm)
            edit.sweep(gm)
        count = sum(len(region.tokens) for region in regions)
        reasons = [each for each in found if isinstance(each, str)] if found else [_no_mask(gm)]
        edit.mark(gm, unpadded=count or None, padded=reasons or None)
        return count


def check_padded_outputs(choice: str) -> None:
    """Raise `ConfigError` for a choice of `padded_outputs` that there is none of."""
    known_name("padded_outputs", choice, (EXACT, ZERO), "choice")


def _no_mask(gm: fx.GraphModule) -> str:
    attentions = gm.graph.find_nodes(op="call_function", target=ATTENTION)
    if not attentions:
        return "it has no attention that a kernel of fxquant computes"
    general = next((edit.marks(node)["mask"] for node in attentions if "mask" in edit.marks(node)), None)
    return f"no attention has a mask (batch, positions) of padding{f': {general}' if general else ''}"


@dataclass(frozen=True)
class _Batch:
    """A padded batch: its region, the value that is zero at padding, and the index of the tokens."""

    region: Region
    mask: fx.Node
    index: fx.Node


def _pack(gm: fx.GraphModule, region: Region) -> None:
    """Let the ops of a region read packed tokens, and its readers what they need of padding."""
    with gm.graph.inserting_before(gm.graph.output_node()):  # `edit.sort` moves them to where they are needed
        mask = untested(region.mask)
        index, offsets = _index(mask)
        batch = _Batch(region, mask, index)
        for value, axis in region.tokens.items():
            _serve(batch, value, axis)
        for uses in _together(region):
            _enter(batch, uses)
    for attention in region.attentions:
        attention.update_arg(3, None)
        attention.update_arg(4, offsets)
        _place(attention, index)
    for node, axis in region.tokens.items():
        resize(node, axis)
        describe_packed(node, axis, mask)
    for node in gm.graph.find_nodes(op="call_function", target=aten.expand.default):
        x = node.args[0]
        if node in region.tokens and isinstance(x, fx.Node) and edit.info(node) == edit.info(x):
            edit.replace(node, x)


def _place(attention: fx.Node, index: fx.Node) -> None:
    """Give an attention the places of its tokens where not their order alone but how far they are apart counts."""
    window = attention.args[9:11]
    if any(window):
        attention.args = (*attention.args[:9], *window, *[None] * (2 - len(window)), index)


def _index(mask: fx.Node) -> tuple[fx.Node, fx.Node]:
    """Insert the index of the tokens, and the offsets of the sequences among them."""
    known = edit.info(mask)
    assert known is not None, "the mask of a region is known"
    (batch, length), varies = known.shape, known.dynamic[0]
    infos = (TensorInfo(torch.int64, (batch * length,), (True,)), TensorInfo(torch.int64, (batch + 1,), (varies,)))
    found = edit.call(mask.graph, ops.token_index.default, (mask,), like=mask)
    index, offsets = (
        edit.call(mask.graph, operator.getitem, (found, number), like=mask, value=info)
        for number, info in enumerate(infos)
    )
    return index, offsets


# ── out ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _serve(batch: _Batch, value: fx.Node, axis: int) -> None:
    """Give the readers outside the region of one of its values what they need of the padded batch."""
    padded = None
    for user, how in [(user, how) for user, read, how in batch.region.exits if read is value]:
        if how is Exit.SELECT:
            _take_place(user, ops.select_token.default, (value, batch.mask, batch.index, user.args[2]))
        elif how is Exit.SIZE:
            whole = batch.region.whole
            assert whole is not None, "a region of which sizes are asked has an input with these sizes"
            _take_place(user, aten.sym_size.int, (whole.value, whole.axis if user.args[1] == axis else 0))
        elif how is Exit.UNPACK:
            padded = padded or _unpacked(batch, value, axis)
            user.replace_input_with(value, padded)


def _take_place(user: fx.Node, target: Any, args: tuple[Any, ...]) -> None:
    new = edit.call(user.graph, target, args, like=user, value=edit.info(user))
    edit.mark(new, reason=edit.marks(user).get("reason"))
    new.meta |= {key: value for key, value in user.meta.items() if key == "val"}
    edit.replace(user, new)


def _unpacked(batch: _Batch, value: fx.Node, axis: int) -> fx.Node:
    """Insert the padded form of a value of the region, which is still described so."""
    first = exchanged(value, axis)
    args = (first, batch.mask, batch.index)
    padded = edit.call(value.graph, ops.unpack_tokens.default, args, like=value, value=edit.info(first))
    result = exchanged(padded, axis)
    result.meta |= {key: each for key, each in value.meta.items() if key == "val"}
    return result


# ── in ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _together(region: Region) -> list[list[Use]]:
    """Return which values are packed by one call: all that do not depend on the region, the others one by one."""
    later = dependents(region.tokens)
    free = [use for use in region.entries if use.value not in later]
    return [*([free] if free else []), *([use] for use in region.entries if use.value in later)]


def _enter(batch: _Batch, uses: list[Use]) -> None:
    """Pack values, and let the region read them so."""
    graph, mask = batch.index.graph, batch.mask
    values = [exchanged(_as_batch(use), use.axis) for use in uses]
    packed = edit.call(graph, ops.pack_tokens.default, (values, mask, batch.index), like=mask)
    for number, (use, value) in enumerate(zip(uses, values, strict=True)):
        item = edit.call(graph, operator.getitem, (packed, number), like=use.value, value=edit.info(value))
        describe_packed(item, 1, mask)
        back = exchanged(item, use.axis)
        for user in batch.region.entries[use]:
            user.replace_input_with(use.value, back)


def _as_batch(use: Use) -> fx.Node:
    """Return the value with an axis of sequences, and with further positions where it was cut to those of the batch."""
    value = use.value
    known = edit.info(value)
    assert known is not None, "what is packed is known"
    if value.target is aten.slice.Tensor:
        x, dim, start, _, step = value.args
        along = dim % len(known.shape) == use.axis - use.missing  # type: ignore[operator]
        several = known.shape[dim] != 1 or known.dynamic[dim]  # type: ignore[index]
        if along and several and start in (0, None) and step == 1:
            assert isinstance(x, fx.Node)
            value = x
    return with_leading_axis(value) if use.missing else value
