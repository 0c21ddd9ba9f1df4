"""What the GEMMs need beside the plain weight: packed copies and row sums, made once per weight tensor (memo.py)."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fxquant.kernels.memo import Memo


@dataclass
class PackedWeight:
    """What is derived from an int8 weight (N, K); every array is made at first use.

    `columns` is the weight seen as (K, N); `scale` and the float sums are (N,) float32, the others (N,) int32. The
    sums are over K.
    """

    columns: Tensor
    scale: Tensor

    @cached_property
    def packed(self) -> Tensor:
        """The weight in oneDNN's layout."""
        packed: Tensor = torch.ops.onednn.qlinear_prepack(self.columns.t().contiguous(), None)
        return packed

    @cached_property
    def sums(self) -> Tensor:
        return self.columns.sum(dim=0, dtype=torch.int32)

    @cached_property
    def float_sums(self) -> Tensor:
        return self.sums.to(torch.float32)

    @cached_property
    def scaled_sums(self) -> Tensor:
        return self.sums.to(torch.float64).mul_(self.scale).to(torch.float32)

    @cached_property
    def no_zero_point(self) -> Tensor:
        return torch.zeros(self.columns.shape[1], dtype=torch.int32)


_PACKED = Memo[PackedWeight]()


def packed_weight(weight: Tensor, scale: Tensor) -> PackedWeight:
    """Return what is derived from `weight` (N, K) and `scale` () or (N,): the same object until one is changed."""
    return _PACKED.get(weight, (scale,), lambda: _derived(weight, scale))


def _derived(weight: Tensor, scale: Tensor) -> PackedWeight:
    width, depth = weight.shape
    per_row = scale.detach().to(torch.float32).reshape(-1).expand(width).contiguous()
    # Strides of dimensions of size 1 are stated too, since torch 2.13's _int_mm believes them.
    columns = weight.detach().contiguous().as_strided((depth, width), (1, depth) if depth > 1 else (width, 1))
    return PackedWeight(columns, per_row)
