"""Launches of the Triton kernels of weight-only linears (device/weight_only.py); the op is in weight_only.py."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fxquant.kernels.cuda.tiles import BLOCK, Tiling
from fxquant.kernels.cuda.triton_support import interpreting, on_device_of

FLOATS = (torch.bfloat16, torch.float16, torch.float32)
FEW = 16  # rows up to which a product is bound by reading the weight
STEP = 512  # bytes of a row of the weight that all warps together take in a step
SHARED = 98_000  # bytes of shared memory that a program may have on every GPU from compute capability 8.0 on, 99 KB


@dataclass(frozen=True)
class Weight:
    """A weight in tiles, as in `tiled_linear_weight_only`."""

    packed: Tensor
    scale: Tensor
    zero_point: Tensor | None
    columns: int
    cut: Tiling


@dataclass(frozen=True)
class Epilogue:
    """What follows the products, as in `tiled_linear_weight_only`."""

    bias: Tensor | None
    residual: Tensor | None
    activation: str
    activated: int | None
    dtype: torch.dtype


@dataclass(frozen=True)
class Blocks:
    """What a program computes: so many rows of x times columns of the weight, sharing the depth in slices."""

    rows: int
    columns: int
    slices: int
    warps: int
    stages: int

    @property
    def few(self) -> bool:
        return self.rows <= FEW


def serves(x: Tensor, columns: int) -> bool:
    """Say whether the kernels compute this; else the reference does."""
    return x.numel() > 0 and columns > 0 and x.dtype in FLOATS


def blocks(rows: int, columns: int, cut: Tiling, item: int, processors: int) -> Blocks:
    """Return the blocks for `rows` of x, of `item` bytes an element, on so many multiprocessors.

    With few rows, programs are narrow enough for every multiprocessor to have one, and hold as many steps of weights
    and activations as fit, so that reads are under way all the time.
    """
    if rows > FEW:
        tall = min(128, max(32, _power(rows)))
        wide = BLOCK if item == 4 or tall < 128 else 2 * BLOCK
        return Blocks(tall, wide, 1, 4 if wide == BLOCK else 8, 2 if item == 4 else 3)
    tall = 8 if rows <= 8 else FEW
    wide = 32 if columns >= 32 * processors and item == 2 else 16
    slices = min(STEP // cut.width, _power(cut.tiles))
    step = slices * cut.width * (wide + cut.parts * tall * item)
    return Blocks(tall, wide, slices, 8, max(2, min(4, 1 + SHARED // step)))


def _power(number: int) -> int:
    """Return the least power of two that is not below a positive `number`."""
    return 1 << (number - 1).bit_length()


def launch(x: Tensor, weight: Weight, after: Epilogue) -> Tensor:
    """Return the result of the kernels, (…, N)."""
    from fxquant.kernels.cuda.device.weight_only import few_rows, many_rows  # noqa: PLC0415  needs Triton

    cut, columns = weight.cut, weight.columns
    y = x.new_empty((*x.shape[:-1], columns), dtype=after.dtype)
    rows = x.numel() // cut.depth
    processors = torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 1
    chosen = blocks(rows, columns, cut, x.element_size(), processors)
    residual = None if after.residual is None else after.residual.expand(y.shape).contiguous()
    pointers = (x.contiguous(), weight.packed, weight.scale, weight.zero_point, after.bias, residual, y)
    sizes = (rows, columns, cut.depth, cut.groups)
    constants = (cut.group, cut.segments, cut.width, cut.tiles, cut.parts, cut.aligned(chosen.slices))
    finish = (after.activation, columns if after.activated is None else after.activated, not interpreting())
    blocking = (chosen.rows, chosen.columns, chosen.slices)
    with on_device_of(x):
        kernel = few_rows if chosen.few else many_rows
        kernel[_grid(rows, columns, chosen)](
            *pointers, *sizes, *constants, *finish, *blocking, num_warps=chosen.warps, num_stages=chosen.stages
        )
    return y


def _grid(rows: int, columns: int, chosen: Blocks) -> tuple[int, ...]:
    if chosen.few:
        return (-(-columns // BLOCK) * (BLOCK // chosen.columns),)
    return -(-rows // chosen.rows), -(-columns // chosen.columns)
