"""`Layer`: what a checkpoint says of one quantized module, whatever its format."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fxquant.errors import DataError
from fxquant.numerics import dequantize
from fxquant.spec import QParams, QuantSpec


@dataclass(frozen=True, eq=False)
class Layer:
    """The integers of one linear or embedding, and how its inputs are quantized.

    Invariants:
        - `integers` is (N, K), one value an element; `qparams` are those of `weight`.
        - Where `order` (K,) is given, column j of the integers is column `order[j]` of the layer: x is to be gathered
          by it first. The columns of a group then stand together.
        - `activation` is None where the inputs stay in float; `activation_qparams` are given where its scale is static.
    """

    weight: QuantSpec
    integers: Tensor
    qparams: QParams
    order: Tensor | None = None
    activation: QuantSpec | None = None
    activation_qparams: QParams | None = None

    def values(self) -> Tensor:
        """Return the weight S·(q − Z) as float32 (N, K), its columns where the layer has them."""
        values = dequantize(self.integers, self.qparams)
        if self.order is None:
            return values
        placed = torch.empty_like(values)
        placed[:, self.order] = values
        return placed


def order_of(groups: Tensor, size: int, count: int, where: str) -> Tensor | None:
    """Return the order of columns in which the members of each group stand together; None where they do already.

    Args:
        groups: (K,), the group of each column, as `g_idx` says it.
        size: columns in a group; the last may have fewer.
        count: how many groups have scales.
        where: the tensor, for messages.

    Raises:
        DataError: a group without scales, or groups of other sizes.
    """
    groups = groups.to(torch.int64)
    low, high = (int(each) for each in torch.aminmax(groups))
    if low < 0 or high >= count:
        raise DataError(f"{where} names groups {low} to {high}: expected 0 to {count - 1}, which have scales")
    placed, order = torch.sort(groups, stable=True)
    if not torch.equal(placed, torch.arange(len(groups)) // size):
        counts = torch.bincount(groups, minlength=count)
        group = int((counts != torch.bincount(torch.arange(len(groups)) // size, minlength=count)).nonzero()[0])
        raise DataError(f"{where} puts {int(counts[group])} columns into group {group}: expected group_size = {size}")
    return None if torch.equal(order, torch.arange(len(groups))) else order


def grouped(
    integers: Tensor, scale: Tensor, zero_point: Tensor, dtype: str, size: int, order: Tensor | None = None
) -> Layer:
    """Return the layer of integers (N, K) with scales and zero points (N, G); one group of all columns is a channel.

    It is symmetric where each zero point is the middle, and of a restricted range where no integer is −128.
    """
    spec = QuantSpec(dtype=dtype, granularity="per-group", group_size=size)
    middle = 0 if spec.format.signed else (spec.qmax + 1) // 2
    if bool((zero_point == middle).all()):
        whole = not spec.format.signed or int(integers.amin()) == spec.format.minimum
        spec = replace(spec, symmetric=True, range="full" if whole else "restricted")
    if scale.shape[1] == 1:
        spec = replace(spec, granularity="per-channel", axis=0, group_size=None)
        flat = QParams(scale[:, 0].contiguous(), zero_point[:, 0].to(torch.int32), 0)
        return Layer(spec, integers, flat, order)
    stored = zero_point.new_tensor(middle) if spec.symmetric else zero_point.contiguous()
    qparams = QParams(scale.contiguous(), stored.to(spec.format.torch_dtype), None, size)
    return Layer(spec, integers, qparams, order)
