"""`fxquant::*_token*`: the tokens of a padded batch without its padding, and back.

A padded batch is (B, S, …) with a mask (B, S) of any dtype, not zero at the T tokens; packed, it is (1, T, …): all
tokens in the order of the batch. `attention` keeps the sequences apart by the offsets that `token_index` gives
with the index. csrc/binding_unpad.cpp computes the ops; the implementations here say what they mean and run anywhere.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from fxquant.kernels.library import define


def token_index(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return where tokens are in a mask (B, S), b·S + s (T,), rising; and where each sequence begins (B + 1,)."""
    live = mask != 0
    return live.flatten().nonzero().flatten(), functional.pad(live.sum(1).cumsum(0), (1, 0))


def pack_tokens(values: Sequence[Tensor], mask: Tensor, index: Tensor) -> list[Tensor]:
    """Return (1, T, …) of each value (B, S, …): what it holds at the places `index` of a mask (B, S).

    A value may have size 1 for either, which serves all places, and more than S positions; the last are then unused.
    """
    rows, columns = index // mask.shape[1], index % mask.shape[1]
    return [
        value[rows if value.shape[0] != 1 else rows * 0, columns if value.shape[1] != 1 else columns * 0][None]
        for value in values
    ]


def unpack_tokens(x: Tensor, mask: Tensor, index: Tensor) -> Tensor:
    """Return (B, S, …) of x (1, T, …): its tokens at the places `index` of a mask (B, S), zeros elsewhere."""
    padded = x.new_zeros((mask.numel(), *x.shape[2:]))
    padded[index] = x[0]
    return padded.reshape(*mask.shape, *x.shape[2:])


def select_token(x: Tensor, mask: Tensor, index: Tensor, place: int) -> Tensor:
    """Return (B, …) of x (1, T, …): what `unpack_tokens` has at one place of each sequence, which may be negative."""
    return unpack_tokens(x, mask, index)[:, place].clone()


def _fake_index(mask: Tensor) -> tuple[Tensor, Tensor]:
    tokens = torch.library.get_ctx().new_dynamic_size()
    return mask.new_empty((tokens,), dtype=torch.int64), mask.new_empty((mask.shape[0] + 1,), dtype=torch.int64)


def _fake_pack(values: Sequence[Tensor], mask: Tensor, index: Tensor) -> list[Tensor]:
    return [value.new_empty((1, index.shape[0], *value.shape[2:])) for value in values]


def _fake_unpack(x: Tensor, mask: Tensor, index: Tensor) -> Tensor:
    return x.new_empty((*mask.shape, *x.shape[2:]))


def _fake_select(x: Tensor, mask: Tensor, index: Tensor, place: int) -> Tensor:
    return x.new_empty((mask.shape[0], *x.shape[2:]))


define("token_index(Tensor mask) -> (Tensor, Tensor)", token_index, _fake_index)
define("pack_tokens(Tensor[] values, Tensor mask, Tensor index) -> Tensor[]", pack_tokens, _fake_pack)
define("unpack_tokens(Tensor x, Tensor mask, Tensor index) -> Tensor", unpack_tokens, _fake_unpack)
define("select_token(Tensor x, Tensor mask, Tensor index, int place) -> Tensor", select_token, _fake_select)
