import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

import fxquant.kernels

assert fxquant.kernels  # defines the ops
ops = torch.ops.fxquant
pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@settings(deadline=None, max_examples=60)
@given(pairs, pairs, pairs, st.booleans(), st.booleans(), st.sampled_from([torch.uint8, torch.int8]), st.booleans())
def test_equals_the_pooling_of_floats(kernel, stride, dilation, padded, ceil_mode, dtype, channels_last):
    low = torch.iinfo(dtype).min
    x = torch.randint(low, low + 256, (2, 5, 9, 8), dtype=dtype)
    padding = [side // 2 * padded for side in kernel]
    options = (list(kernel), list(stride), padding, list(dilation), ceil_mode)
    y = ops.max_pool2d_bytes(x.to(memory_format=torch.channels_last) if channels_last else x, *options)
    assert y.dtype is dtype
    assert torch.equal(y.float(), functional.max_pool2d(x.float(), *options))


def test_without_a_stride_it_is_the_kernel():
    x = torch.randint(0, 256, (1, 2, 6, 6), dtype=torch.uint8)
    for each in (x, x[0]):
        found = ops.max_pool2d_bytes(each, [2], [], [0], [1], False)
        assert torch.equal(found.float(), functional.max_pool2d(each.float(), 2))


@pytest.mark.parametrize("batch", [0, 2])
def test_fake_tensors_have_the_shape_and_strides(batch):
    x = torch.randint(0, 256, (batch, 3, 7, 6), dtype=torch.uint8).to(memory_format=torch.channels_last)
    arguments = (x, [3, 2], [2, 2], [1, 0], [1, 1], True)
    torch.library.opcheck(ops.max_pool2d_bytes.default, arguments, test_utils="test_faketensor")
