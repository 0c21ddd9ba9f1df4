"""Integers of 4 or 8 bits in words of 32, as checkpoints hold them: the first value in the lowest bits."""

import torch
from torch import Tensor

from fxquant.kernels.int4 import pack_int4, unpack_int4

BITS = (4, 8)


def unpack_words(words: Tensor, bits: int, axis: int) -> Tensor:
    """Return the unsigned integers in int32 `words` as uint8, 32/bits times as many along `axis`."""
    rows = words.movedim(axis, -1)
    # flat, for a dimension of size 1 may have any stride, and a view of other sizes takes it at its word
    data = rows.flatten().view(torch.uint8).reshape(*rows.shape[:-1], 4 * rows.shape[-1])
    values = data if bits == 8 else unpack_int4(data, 2 * data.shape[-1], False)
    return values.movedim(-1, axis).contiguous()


def pack_words(values: Tensor, bits: int, axis: int) -> Tensor:
    """Return uint8 values as int32 words along `axis`, which `unpack_words` reads; zeros fill up the last word."""
    rows = values.movedim(axis, -1)
    rows = torch.nn.functional.pad(rows, (0, -rows.shape[-1] % (32 // bits)))
    data = rows if bits == 8 else pack_int4(rows.contiguous())
    words = data.flatten().view(torch.int32).reshape(*data.shape[:-1], data.shape[-1] // 4)
    return words.movedim(-1, axis).contiguous()
