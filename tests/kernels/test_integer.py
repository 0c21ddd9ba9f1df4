import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fxquant.kernels.integer import integer_matmul

DTYPES = {"int8": torch.int8, "uint8": torch.uint8}


def integers(shape, dtype, seed):
    limits = torch.iinfo(dtype)
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(limits.min, limits.max + 1, shape, dtype=dtype, generator=generator)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(["int8", "uint8"]),
    st.sampled_from(["int8", "uint8"]),
    st.tuples(st.integers(0, 9), st.integers(0, 1500), st.integers(0, 9)),
    st.integers(0, 99),
)
def test_equals_int64_arithmetic(left, right, sizes, seed):
    rows, depth, columns = sizes
    a = integers((rows, depth), DTYPES[left], seed)
    b = integers((depth, columns), DTYPES[right], seed + 1)
    expected = a.numpy().astype(np.int64) @ b.numpy().astype(np.int64)
    result = integer_matmul(a, b)
    assert result.dtype is torch.int32
    np.testing.assert_array_equal(result.numpy(), expected)


@pytest.mark.parametrize(
    ("a", "b"),
    [(255, 255), (255, 127), (-128, -128), (255, -128)],
    ids=["uint8-uint8", "uint8-int8", "int8-int8", "opposite-signs"],
)
def test_the_largest_products_stay_exact(a, b):
    depth = 4099
    left = torch.full((2, depth), a, dtype=torch.uint8 if a > 127 else torch.int8)
    right = torch.full((depth, 3), b, dtype=torch.uint8 if b > 127 else torch.int8)
    # One odd element makes a sum that float32 cannot hold.
    right[0] = 1
    assert integer_matmul(left, right).unique().tolist() == [a * b * (depth - 1) + a]


def test_batches_broadcast_and_views_are_accepted():
    a, b = integers((2, 1, 5, 700), torch.int8, 0), integers((3, 11, 700), torch.uint8, 1).transpose(1, 2)
    expected = np.matmul(a.numpy().astype(np.int64), b.numpy().astype(np.int64))
    np.testing.assert_array_equal(integer_matmul(a, b).numpy(), expected)
