"""Two 4-bit values to a byte, and `fxquant::unpack_int4`, which Q/DQ graphs read such constants through.

Along the last axis, byte j holds value 2·j in its low four bits and value 2·j + 1 in its high ones, signed values in
two's complement. An odd number of values leaves the last four bits zero.
"""

import torch
from torch import Tensor
from torch.nn import functional

from fxquant.kernels.library import define


def pack_int4(values: Tensor) -> Tensor:
    """Return int8 values in [−8, 7] or uint8 ones in [0, 15], (…, K), as bytes (…, ⌈K/2⌉)."""
    codes = functional.pad(values.view(torch.uint8) & 15, (0, values.shape[-1] % 2))
    return codes[..., ::2] | (codes[..., 1::2] << 4)


def unpack_int4(packed: Tensor, size: int, signed: bool) -> Tensor:
    """Return the `size` values along the last axis that `pack_int4` took: int8 where `signed`, else uint8."""
    values = torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)[..., :size]
    # 8 … 15 stand for −8 … −1: (v ^ 8) − 8 extends the sign.
    return (values ^ 8).view(torch.int8) - 8 if signed else values.contiguous()


def _fake_unpack_int4(packed: Tensor, size: int, signed: bool) -> Tensor:
    return packed.new_empty((*packed.shape[:-1], size), dtype=torch.int8 if signed else torch.uint8)


define("unpack_int4(Tensor packed, int size, bool signed) -> Tensor", unpack_int4, _fake_unpack_int4)
