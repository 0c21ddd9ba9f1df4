"""The layout of weights that GPUs multiply with float activations."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fxquant.kernels
from fxquant.kernels.cuda import tiles
from fxquant.kernels.int4 import pack_int4
from fxquant.kernels.layout import LAYOUTS
from fxquant.spec import QuantSpec

assert fxquant.kernels  # registers the layout
sizes = st.sampled_from([0, 1, 3, 15, 16, 17, 64, 65, 130])


def per_group(dtype, size):
    return QuantSpec(dtype=dtype, granularity="per-group", group_size=size)


def integers_of(spec, n, k, seed=0):
    form = spec.format
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(form.minimum, form.maximum + 1, (n, k), generator=generator).to(form.torch_dtype)


@settings(deadline=None, max_examples=60)
@given(
    sizes, sizes, st.sampled_from([1, 3, 16, 20, 32, 64, 100, 192]),
    st.sampled_from(["int4", "uint4", "int8", "uint8"]), st.integers(0, 99),
)  # fmt: skip
def test_unpack_undoes_pack(n, k, group, dtype, seed):
    spec = per_group(dtype, group)
    integers = integers_of(spec, n, k, seed)
    packed, cut = tiles.pack(integers, spec), tiles.tiling(spec, k)
    assert packed.shape == (-(-n // 64), cut.tiles, 64, cut.width)
    stored = pack_int4(integers) if spec.format.packed else integers
    plain = LAYOUTS[tiles.LAYOUT](packed, stored.to("meta"), *tiles.layout_arguments(spec, (n, k)))
    assert torch.equal(plain, stored)
    assert plain.dtype is stored.dtype


def test_packing_is_the_documented_order():
    integers = integers_of(per_group("int4", 40), 70, 100)
    nibbles = tiles.pack(integers, per_group("int4", 40))
    assert nibbles.shape == (2, 3, 64, 32), "three groups of two segments of 32 values, two segments a tile"
    # Tile 1 holds the segments of the second group, which begins at column 40; its second segment has 8 values.
    byte = int(nibbles[1, 1, 5, 3])
    assert (byte & 15, byte >> 4) == (int(integers[69, 43]) + 8, int(integers[69, 75]) + 8)
    assert (nibbles[0, 1, 5, 8:] >> 4).sum() == 0, "beyond the group's 40 columns"
    assert nibbles[1, :, 6:].sum() == 0, "beyond N"
    octets = tiles.pack(integers_of(per_group("uint8", 40), 70, 100), per_group("uint8", 40))
    assert octets.shape == (2, 6, 64, 32)
    assert octets[1, 3, 5, 7] == integers_of(per_group("uint8", 40), 70, 100)[69, 40 + 32 + 7]


@pytest.mark.parametrize(
    ("depth", "group", "parts", "slices", "expected"),
    [
        (4096, 128, 2, 8, True),
        (4096, 32, 2, 16, True),
        (4096, 4096, 1, 8, True),
        (4000, 128, 2, 8, False),
        (4096, 128, 2, 64, False),
        (96, 32, 2, 1, False),
        (4096, 100, 1, 1, False),
        (4080, 40, 1, 1, False),
    ],
)
def test_aligned_is_what_needs_no_mask(depth, group, parts, slices, expected):
    assert tiles.Tiling(depth, group, parts).aligned(slices) is expected
