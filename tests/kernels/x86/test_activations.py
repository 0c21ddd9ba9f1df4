import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fxquant import numerics
from fxquant.kernels.x86.activations import quantize_rows, quantize_whole
from fxquant.spec import QuantSpec


def spec_of(dtype, symmetric, scale_range, granularity):
    return QuantSpec(dtype=dtype, symmetric=symmetric, range=scale_range, granularity=granularity, dynamic=True)


FORMATS = [
    ("uint8", False, "restricted"),
    ("uint8", True, "restricted"),
    ("int8", False, "restricted"),
    ("int8", True, "restricted"),
    ("int8", True, "full"),
]
IDS = ["uint8-affine", "uint8-symmetric", "int8-affine", "int8-restricted", "int8-full"]

# Few distinct quotients, so that exact ties between two integers are common.
ties = st.integers(-510, 510).map(lambda n: n / 2)
anything = st.floats(-(2.0**100), 2.0**100, width=32)
rows = st.integers(1, 4).flatmap(
    lambda depth: st.lists(st.lists(ties | anything, min_size=depth, max_size=depth), min_size=1, max_size=5)
)


def in_int8_form(q):
    return q if q.dtype is torch.int8 else (q.int() - 128).to(torch.int8)


def expected(x, spec):
    qparams = numerics.choose_qparams(x, spec)
    return in_int8_form(numerics.quantize(x, qparams, spec)), qparams


@pytest.mark.parametrize("form", FORMATS, ids=IDS)
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8], ids=["as-int8", "as-uint8"])
@settings(deadline=None, max_examples=150)
@given(rows)
def test_rows_equal_numerics_to_the_bit(form, dtype, values):
    x, spec = torch.tensor(values), spec_of(*form, "per-token")
    q, scale, minus_zero_point = quantize_rows(x, spec, dtype)
    integers, qparams = expected(x, spec)
    assert q.dtype is dtype
    assert torch.equal(in_int8_form(q), integers)
    excess = 128 if spec.dtype == "uint8" else 0
    assert torch.equal(-minus_zero_point, qparams.zero_point - float(excess))
    # A row without a range has its scale replaced; which one does not matter where every q − Z is 0.
    some = x.abs().amax(-1) > 2.0**-100
    assert torch.equal(scale[some], qparams.scale[some])


@pytest.mark.parametrize("form", FORMATS, ids=IDS)
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8], ids=["as-int8", "as-uint8"])
@settings(deadline=None, max_examples=100)
@given(rows)
def test_a_whole_tensor_equals_numerics_to_the_bit(form, dtype, values):
    x, spec = torch.tensor(values), spec_of(*form, "per-tensor")
    q, scale, zero_point = quantize_whole(x, spec, dtype)
    integers, qparams = expected(x, spec)
    assert torch.equal(in_int8_form(q), integers)
    assert zero_point == qparams.zero_point.item() - (128 if spec.dtype == "uint8" else 0)
    if x.abs().amax() > 2.0**-100:
        assert scale == qparams.scale.item()


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8], ids=["as-int8", "as-uint8"])
@pytest.mark.parametrize("overflowing", [False, True], ids=["ordinary", "rounded-outwards-at-both-ends"])
def test_many_rows_equal_numerics_to_the_bit(dtype, overflowing):
    x, spec = torch.randn(700, 384), spec_of("uint8", False, "restricted", "per-token")
    if overflowing:
        # round(243.5) − round(−11.5) is 256, one step above the range.
        x[5], x[5, 0], x[5, 1] = 0.0, -11.5, 243.5
    q, _, _ = quantize_rows(x, spec, dtype)
    integers, _ = expected(x, spec)
    assert torch.equal(in_int8_form(q), integers)
    assert not overflowing or in_int8_form(q)[5, :2].tolist() == [-128, 127]


def test_a_row_of_nan_stays_visible():
    _, scale, _ = quantize_rows(
        torch.tensor([[1.0, float("nan")]]), spec_of("uint8", False, "full", "per-token"), torch.int8
    )
    assert scale.isnan().all()
