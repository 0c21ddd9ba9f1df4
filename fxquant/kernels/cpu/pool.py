"""`fxquant::max_pool2d`: max-pooling, also of integers whose channels lie side by side, which torch's own refuses.

The result is the greatest of as many shifted images as a window has places, each of which is one vectorised maximum.
"""

from collections.abc import Sequence
from functools import reduce
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional

from fxquant.kernels.library import define


def max_pool2d(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> Tensor:
    """Return `aten.max_pool2d` of x [(B,) C, H, W], of integers too; an option has one value or two."""
    sides, gaps = _two(kernel), _two(dilation)
    steps, pads = _two(stride or kernel), _two(padding)
    axes = zip(x.shape[-2:], sides, steps, pads, gaps, strict=True)
    counts = [_count(size, side, step, pad, gap, ceil_mode) for size, side, step, pad, gap in axes]
    reached = zip(counts, x.shape[-2:], sides, steps, pads, gaps, strict=True)
    behind = [(n - 1) * step + gap * (side - 1) + 1 - size - pad for n, size, side, step, pad, gap in reached]
    wide = functional.pad(x, (pads[1], behind[1], pads[0], behind[0]), value=_least(x.dtype))
    shifted = (
        wide[..., i * gaps[0] :: steps[0], j * gaps[1] :: steps[1]][..., : counts[0], : counts[1]]
        for i, j in product(*map(range, sides))
    )
    return reduce(torch.maximum, shifted).clone(memory_format=torch.preserve_format)


def _least(dtype: torch.dtype) -> float:
    return -torch.inf if dtype.is_floating_point else torch.iinfo(dtype).min


def _two(values: Sequence[int]) -> tuple[int, int]:
    return (values[0], values[-1])


def _count(size: int, side: int, step: int, pad: int, gap: int, ceil_mode: bool) -> int:
    """Return how many windows there are; a last one that is not whole has to begin inside or in front padding."""
    room = size + 2 * pad - gap * (side - 1) - 1
    count = (room + (step - 1 if ceil_mode else 0)) // step + 1
    return count - 1 if ceil_mode and (count - 1) * step >= size + pad else count


define(
    "max_pool2d(Tensor x, int[] kernel, int[] stride, int[] padding, int[] dilation, bool ceil_mode) -> Tensor",
    max_pool2d,
    max_pool2d,  # of tensors without values it gives one with the right shape and strides
)
