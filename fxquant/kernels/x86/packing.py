"""What the GEMMs need beside the plain weight: packed copies and row sums, made once per weight tensor.

Graphs hold plain integer tensors, which can be copied and saved; what is derived from them lives here, as long as
the tensor itself, and is made anew when the tensor was changed in place.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary


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


Fingerprint = tuple[int, ...]
# Weight → (fingerprint of weight and scale, what was derived from them, the scale). Holding the scale keeps its
# identity from being used again.
_PACKED = WeakIdKeyDictionary()


def _fingerprint(weight: Tensor, scale: Tensor) -> Fingerprint:
    # Tensors made under inference_mode count no versions.
    weight_version = -1 if weight.is_inference() else weight._version
    scale_version = -1 if scale.is_inference() else scale._version
    return weight_version, weight.data_ptr(), scale_version, scale.data_ptr(), id(scale)


def packed_weight(weight: Tensor, scale: Tensor) -> PackedWeight:
    """Return what is derived from `weight` (N, K) and `scale` () or (N,): the same object until one is changed."""
    fingerprint = _fingerprint(weight, scale)
    entry: tuple[Fingerprint, PackedWeight, Tensor] | None = _PACKED.get(weight)  # type: ignore[no-untyped-call]
    if entry is not None and entry[0] == fingerprint:
        return entry[1]
    width, depth = weight.shape
    per_row = scale.detach().to(torch.float32).reshape(-1).expand(width).contiguous()
    # Strides of dimensions of size 1 are stated too, since torch 2.13's _int_mm believes them.
    columns = weight.detach().contiguous().as_strided((depth, width), (1, depth) if depth > 1 else (width, 1))
    made = PackedWeight(columns, per_row)
    _PACKED[weight] = (fingerprint, made, scale)
    return made
