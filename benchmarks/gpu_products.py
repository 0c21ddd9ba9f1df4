"""How near products of one row with 4-bit weights come to the speed of a GPU's memory."""

from collections.abc import Callable
from dataclasses import dataclass

import common
import torch
from gpu_machine import Machine
from torch import Tensor

import fxquant.kernels
from fxquant.kernels.cpu.weight_only import pack_parameter
from fxquant.kernels.cuda import tiles
from fxquant.numerics import choose_qparams, quantize
from fxquant.spec import QuantSpec

assert fxquant.kernels  # defines the ops
SIZES = ((4096, 4096), (4096, 14336), (14336, 4096), (8192, 8192), (8192, 28672))  # depth, columns
TINY_SIZES = ((64, 128),)
GROUPS = (32, 128)
TIMES_THE_CACHE = 4  # bytes of weights that are read in turn, so that none is still in the cache


@dataclass(frozen=True)
class Product:
    """One row of activations times a 4-bit weight: bytes that have to be read and written, and seconds."""

    depth: int
    columns: int
    group: int
    bytes: int
    seconds: float

    @property
    def bandwidth(self) -> float:
        return self.bytes / self.seconds


def measure(machine: Machine) -> list[Product]:
    """Return the time of bfloat16 rows times weights of 4 bits, each with zero points."""
    sizes = TINY_SIZES if machine.dry else SIZES
    return [_product(machine, depth, columns, group) for depth, columns in sizes for group in GROUPS]


def _product(machine: Machine, depth: int, columns: int, group: int) -> Product:
    spec = QuantSpec(dtype="int4", granularity="per-group", group_size=group)
    weight = torch.randn(columns, depth, device=machine.device)
    qparams = choose_qparams(weight, spec)
    shape = (columns, depth)
    packed = tiles.pack(quantize(weight, qparams, spec), spec)
    scale, zero_point = (pack_parameter(each, shape, spec) for each in (qparams.scale, qparams.zero_point))
    x = torch.randn(1, depth, device=machine.device).bfloat16()
    one = packed.nbytes + scale.nbytes + zero_point.nbytes
    copies = min(max(2, -(-TIMES_THE_CACHE * machine.cache() // one)), 256)
    calls = [_call(x, packed.clone(), scale.clone(), zero_point.clone(), columns, group) for _ in range(copies)]
    return Product(depth, columns, group, one + 2 * (depth + columns), machine.seconds_each(calls))


def _call(x: Tensor, packed: Tensor, scale: Tensor, zero_point: Tensor, n: int, group: int) -> Callable[[], Tensor]:
    op = torch.ops.fxquant.tiled_linear_weight_only
    return lambda: op(x, packed, scale, zero_point, None, None, "none", n, group, 4, torch.bfloat16, None)


def show(found: list[Product], copy: float) -> None:
    """Print the products beside what copies reach."""
    rows = [
        (f"{each.depth}×{each.columns}", each.group, f"{1e6 * each.seconds:.2f}", f"{each.bandwidth / 1e9:.0f}",
         f"{each.bandwidth / copy:.0%}")
        for each in found
    ]  # fmt: skip
    head = ("depth×columns", "group", "µs", "GB/s", "of a copy's")
    common.show(f"One bfloat16 row times 4-bit weights; a copy reads and writes {copy / 1e9:.0f} GB/s", head, rows)
