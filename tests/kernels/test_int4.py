"""Two values to a byte."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fxquant.kernels.int4 import pack_int4

ops = torch.ops.fxquant
shapes = st.lists(st.integers(0, 5), min_size=0, max_size=2).flatmap(
    lambda batch: st.integers(0, 9).map(lambda size: (*batch, size))
)


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
@settings(deadline=None, max_examples=60)
@given(shapes, st.integers(0, 99))
def test_unpack_undoes_pack(signed, shape, seed):
    generator = torch.Generator().manual_seed(seed)
    low, dtype = (-8, torch.int8) if signed else (0, torch.uint8)
    values = torch.randint(low, low + 16, shape, generator=generator).to(dtype)
    packed = pack_int4(values)
    assert packed.dtype is torch.uint8
    assert packed.shape == (*shape[:-1], -(-shape[-1] // 2))
    assert torch.equal(ops.unpack_int4(packed, shape[-1], signed), values)
    assert ops.unpack_int4(packed, shape[-1], signed).dtype is dtype


def test_the_first_value_is_in_the_low_bits_and_a_last_half_byte_is_zero():
    assert pack_int4(torch.tensor([1, 2, 15], dtype=torch.uint8)).tolist() == [0x21, 0x0F]
    assert pack_int4(torch.tensor([-1, 7, -8], dtype=torch.int8)).tolist() == [0x7F, 0x08]


def test_columns_of_a_larger_tensor():
    values = torch.randint(-8, 8, (6, 10), dtype=torch.int8).t()
    assert torch.equal(ops.unpack_int4(pack_int4(values), 6, True), values)


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
def test_opcheck(signed):
    packed = torch.randint(0, 256, (3, 4), dtype=torch.uint8)
    torch.library.opcheck(ops.unpack_int4.default, (packed, 7, signed))
