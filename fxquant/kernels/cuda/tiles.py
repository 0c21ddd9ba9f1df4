"""Tiles: the layout of weights of 8 or 4 bits that GPUs multiply with float activations.

The columns of a row that share a scale, a group, are cut into segments of W values (16, 32 or 64), the last filled up;
segments are numbered through. Codes are stored without a sign, 8 or 128 more where they have one. In blocks of 64 rows:

- 8 bits: uint8 [⌈N/64⌉, segments, 64, W]; byte (b, t, c, i) is value i of segment t of row 64·b + c.
- 4 bits: uint8 [⌈N/64⌉, ⌈segments/2⌉, 64, W]; the low half of byte (b, t, c, i) is value i of segment 2·t, the high
  half that of segment 2·t + 1.

So a scale belongs to whole segments, what 64 rows need of one is contiguous, and no value is more than a mask away from
its place in a register. Scales, and zero points where there are any, are [⌈N/64⌉, groups, 64].
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fxquant.kernels.cpu.weight_only import group_size
from fxquant.kernels.int4 import pack_int4
from fxquant.kernels.layout import LAYOUTS
from fxquant.numerics import as_groups
from fxquant.spec import QuantSpec

LAYOUT = "tiles"
BLOCK = 64
WIDTHS = (64, 32, 16)
MIDDLES = {1: 128, 2: 8}  # what signed codes of one and of two parts a byte are stored more


@dataclass(frozen=True)
class Tiling:
    """How rows of `depth` codes, `group` of which share a scale, are cut into tiles of `parts` segments."""

    depth: int
    group: int
    parts: int

    @property
    def width(self) -> int:
        """Values of a segment: as many as a group fills, but no fewer than a tensor core's product is deep."""
        return next((width for width in WIDTHS if width <= self.group), WIDTHS[-1])

    @property
    def segments(self) -> int:
        """Segments of a group."""
        return -(-self.group // self.width)

    @property
    def groups(self) -> int:
        """Groups of a row."""
        return -(-self.depth // self.group)

    @property
    def tiles(self) -> int:
        """Tiles of a row."""
        return -(-self.groups * self.segments // self.parts)

    def aligned(self, slices: int) -> bool:
        """Say whether nothing is filled up, and steps of `slices` tiles leave none over."""
        full = self.group % self.width == 0 and self.depth % self.group == 0
        return full and self.tiles * self.parts == self.groups * self.segments and self.tiles % slices == 0


def tiling(spec: QuantSpec, depth: int) -> Tiling:
    """Return how rows of `depth` weights of `spec` are cut."""
    return Tiling(depth, group_size(spec, depth), 2 if spec.format.packed else 1)


def pack(integers: Tensor, spec: QuantSpec) -> Tensor:
    """Return the weight `integers` (N, K), one value an element, in tiles."""
    cut, rows = tiling(spec, integers.shape[1]), len(integers)
    codes = (integers.to(torch.int16) + spec.format.signed * MIDDLES[cut.parts]).to(torch.uint8)
    groups = functional.pad(as_groups(codes, cut.group), (0, cut.segments * cut.width - cut.group))
    segments = groups.reshape(rows, cut.groups * cut.segments, cut.width)
    whole = functional.pad(segments, (0, 0, 0, cut.tiles * cut.parts - segments.shape[1]))
    low, *high = whole.reshape(rows, cut.tiles, cut.parts, cut.width).unbind(2)
    tiles = functional.pad(low | high[0] << 4 if high else low, (0, 0, 0, 0, 0, -rows % BLOCK))
    return tiles.reshape(-(-rows // BLOCK), BLOCK, cut.tiles, cut.width).transpose(1, 2).contiguous()


def unpack(packed: Tensor, columns: int, cut: Tiling) -> Tensor:
    """Return the codes (columns, depth) of a packed weight as they are stored, uint8."""
    tiles = packed.transpose(1, 2).flatten(0, 1)[:columns]
    parts = (tiles,) if cut.parts == 1 else (tiles & 15, tiles >> 4)
    segments = torch.stack(parts, dim=2).flatten(1, 2)[:, : cut.groups * cut.segments]
    groups = segments.reshape(columns, cut.groups, cut.segments * cut.width)[..., : cut.group]
    return groups.flatten(1)[:, : cut.depth].contiguous()


def unpack_parameter(blocks: Tensor, columns: int) -> Tensor:
    """Return a scale or zero point [⌈N/64⌉, groups, 64] as (N, groups)."""
    return blocks.transpose(1, 2).flatten(0, 1)[:columns]


def layout_arguments(spec: QuantSpec, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return what `_plain` has to know of a weight (N, K)."""
    cut = tiling(spec, shape[1])
    return cut.depth, cut.group, cut.parts, int(spec.format.signed)


@LAYOUTS.register(LAYOUT)
def _plain(packed: Tensor, like: Tensor, depth: int, group: int, parts: int, signed: int) -> Tensor:
    """Return the weight that `pack` took, as Q/DQ graphs store it: two values a byte where they have 4 bits."""
    values = unpack(packed, len(like), Tiling(depth, group, parts))
    if signed:
        values = (values.to(torch.int16) - MIDDLES[parts]).to(torch.int8)
    return pack_int4(values) if parts == 2 else values
