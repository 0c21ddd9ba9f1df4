"""Launches of the Triton kernels of weight-only linears (device/weight_only.py); the op is in weight_only.py."""

from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor

from fxquant.kernels.cuda.choice import Question, run_fastest
from fxquant.kernels.cuda.launch_gemm import row_class
from fxquant.kernels.cuda.tiles import BLOCK, Tiling
from fxquant.kernels.cuda.triton_support import held, interpreting, on_device_of

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
    """Return the blocks for `rows` of x, of `item` bytes an element, on so many multiprocessors, where none is known.

    With few rows, programs are narrow enough for every multiprocessor to have one.
    """
    if rows > FEW:
        tall = min(128, max(32, _power(rows)))
        return _many(tall, BLOCK if item == 4 or tall < 128 else 2 * BLOCK, item)
    return _few(rows, 32 if columns >= 32 * processors and item == 2 else 16, STEP, cut, item)


@lru_cache(maxsize=4096)
def ways(rows: int, columns: int, cut: Tiling, item: int, processors: int) -> dict[str, Blocks]:
    """Return what is to be measured for a shape, by name; the first is what `blocks` says."""
    found = [blocks(rows, columns, cut, item, processors)]
    if rows <= FEW:
        found += [_few(rows, wide, step, cut, item) for wide in (16, 32, 64) for step in (STEP // 2, STEP)]
    else:
        tall = max(32, _power(rows))
        found += [_many(each, wide, item) for each in (32, 64, 128) if each <= tall for wide in (BLOCK, 2 * BLOCK)]
    fitting = [each for each in found if each is found[0] or each.stages > 1]
    return {f"{each.rows}x{each.columns}x{each.slices}": each for each in fitting}


def _few(rows: int, wide: int, depth: int, cut: Tiling, item: int) -> Blocks:
    """Return blocks for few rows, with as many steps of weights and activations at once as there is room for."""
    tall, slices = 8 if rows <= 8 else FEW, min(depth // cut.width, _power(cut.tiles))
    step = slices * cut.width * (wide + cut.parts * tall * item)
    return Blocks(tall, wide, slices, 8, min(4, 1 + SHARED // step))


def _many(tall: int, wide: int, item: int) -> Blocks:
    return Blocks(tall, wide, 1, 4 if wide == BLOCK else 8, 2 if item == 4 else 3)


def _power(number: int) -> int:
    """Return the least power of two that is not below a positive `number`."""
    return 1 << (number - 1).bit_length()


def launch(x: Tensor, weight: Weight, after: Epilogue) -> Tensor:
    """Return the result of the kernels, (…, N), in the blocks that are fastest for the shape."""
    cut, rows = weight.cut, x.numel() // weight.cut.depth
    processors = torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 1
    counted = 8 if rows <= 8 else row_class(rows)
    found = ways(counted, weight.columns, cut, x.element_size(), processors)
    facts = (counted, weight.columns, cut.depth, cut.group, 8 // cut.parts)
    question = Question("tiled_linear_weight_only", (*facts, str(x.dtype), str(weight.zero_point is not None)))
    runs = {name: partial(_launch, x, weight, after, chosen) for name, chosen in found.items()}
    y: Tensor = run_fastest(question, x, runs)
    return y


def _launch(x: Tensor, weight: Weight, after: Epilogue, chosen: Blocks) -> Tensor:
    from fxquant.kernels.cuda.device.weight_only import few_rows, many_rows  # noqa: PLC0415  needs Triton

    cut, columns = weight.cut, weight.columns
    y = x.new_empty((*x.shape[:-1], columns), dtype=after.dtype)
    rows = x.numel() // cut.depth
    residual = None if after.residual is None else after.residual.expand(y.shape).contiguous()
    pointers = (x.contiguous(), weight.packed, weight.scale, held(weight.zero_point), held(after.bias), residual, y)
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
