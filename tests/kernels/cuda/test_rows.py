"""Rows are quantized as numerics.py says, to the bit, also behind a norm; by Triton's kernel as by the reference."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from linears import random

from fxquant import numerics
from fxquant.kernels.cuda import launch_rows, rows
from fxquant.spec import QParams, QuantSpec

pytestmark = pytest.mark.usefixtures("interpreted")
ops = torch.ops.fxquant
# Of what opcheck tests, all but the compilation of each op by itself, which takes seconds.
check_op = partial(torch.library.opcheck, test_utils=("test_schema", "test_faketensor"))
SCHEMES = [
    (dtype, symmetric, range)
    for dtype in ("int8", "uint8")
    for symmetric in (True, False)
    for range in (("restricted", "full") if symmetric else ("restricted",))
]
quietly = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy's, of NaN and infinity
few = settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def assert_rows(found, x, scheme):
    """Compare integers, scales and zero points with numerics.py, to the bit; NaN scales are equal."""
    dtype, symmetric, range = scheme
    spec = QuantSpec(dtype=dtype, granularity="per-token", symmetric=symmetric, dynamic=True, range=range)
    qparams = numerics.choose_qparams(x, spec)
    q, scale, zero_point = found
    torch.testing.assert_close(scale, qparams.scale, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(zero_point, qparams.zero_point)
    assert q.dtype is spec.format.torch_dtype
    assert torch.equal(q, numerics.quantize(x, qparams, spec))


@few
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 70)),
    scheme=st.sampled_from(SCHEMES),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    size=st.sampled_from([1e-6, 1.0, 1e4]),
    seed=st.integers(0, 99),
)
def test_rows_of_any_shape(shape, scheme, dtype, size, seed):
    x = (random(*shape, seed=seed) * size).to(dtype)
    assert_rows(ops.quantize_rows(x, *scheme), x, scheme)


@quietly
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_values_that_have_no_integer(scheme):
    x = random(7, 9)
    x[0, 3], x[1, 0], x[2, 1], x[3] = np.nan, np.inf, -np.inf, 0.0
    x[4, 2], x[5], x[6] = 3e38, 1e-40, -x[6].abs()
    assert_rows(ops.quantize_rows(x, *scheme), x, scheme)


def test_ties_go_to_the_even_integer():
    x = torch.tensor([[-127.0, 0.5, 1.5, 2.5, -0.5, -1.5, 127.0]])
    q, scale, _ = ops.quantize_rows(x, "int8", True, "restricted")
    assert scale.item() == 1.0
    assert q.tolist() == [[-127, 0, 2, 2, 0, -2, 127]]


def normalized(x, weight, bias, norm, eps):
    """Return the norm of x in float64."""
    x = x.double()
    centred = x - x.mean(-1, keepdim=True) if norm == "layer" else x
    y = centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    return y * (1 if weight is None else weight.double()) + (0 if bias is None else bias.double())


@few
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(2, 70)),
    norm=st.sampled_from(["layer", "rms"]),
    weighted=st.booleans(),
    keep=st.booleans(),
    seed=st.integers(0, 99),
)
def test_norm_and_rows(shape, norm, weighted, keep, seed):
    x = random(*shape, seed=seed) * 3 + 1
    weight = random(shape[1], seed=1) if weighted else None
    bias = random(shape[1], seed=2) if weighted and norm == "layer" else None
    found = ops.norm_quantize_rows(x, weight, bias, norm, 1e-6, "int8", False, "restricted", keep)
    wanted = normalized(x, weight, bias, norm, 1e-6)
    q, scale, zero_point, *kept = found
    assert len(kept) == keep
    y = kept[0] if keep else ops.norm_quantize_rows(x, weight, bias, norm, 1e-6, "int8", False, "restricted", True)[3]
    torch.testing.assert_close(y.double(), wanted, rtol=3e-5, atol=3e-5)
    assert_rows((q, scale, zero_point), y, ("int8", False, "restricted"))


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_norm_and_one_scale(norm):
    x, weight = random(5, 33), random(33, seed=1)
    scale, zero_point = torch.tensor(0.03), torch.tensor(7, dtype=torch.int32)
    q, y = ops.norm_quantize_static(x, weight, None, norm, 1e-6, scale, zero_point, -100, 127, torch.int8, True)
    torch.testing.assert_close(y.double(), normalized(x, weight, None, norm, 1e-6), rtol=3e-5, atol=3e-5)
    assert torch.equal(q, numerics.quantize_to(y, QParams(scale, zero_point), -100, 127, torch.int8))
    assert q.min() == -100, "the bound is reached"
    (alone,) = ops.norm_quantize_static(x, weight, None, norm, 1e-6, scale, zero_point, -100, 127, torch.int8, False)
    assert torch.equal(alone, q)


def test_a_norm_in_bfloat16_is_quantized_as_it_is_returned():
    x = random(3, 40, dtype=torch.bfloat16)
    *found, y = ops.norm_quantize_rows(x, None, None, "rms", 1e-6, "int8", True, "restricted", True)
    assert y.dtype is torch.bfloat16
    assert_rows(found, y, ("int8", True, "restricted"))


@quietly
def test_one_scale_for_all():
    x = random(4, 50) * 100
    x[0, :3] = torch.tensor([np.nan, np.inf, -np.inf])
    scale, zero_point = torch.tensor(0.5), torch.tensor(130, dtype=torch.int32)
    given = (x, scale, zero_point, 0, 255, torch.uint8)
    assert torch.equal(rows.quantize_static(*given), numerics.quantize_to(x, QParams(scale, zero_point), *given[3:]))


@pytest.mark.parametrize("shape", [(0, 8), (2, 0), (2, 0, 5)], ids=str)
def test_rows_without_values(shape):
    x = torch.empty(shape)
    assert_rows(ops.quantize_rows(x, "int8", False, "restricted"), x, ("int8", False, "restricted"))


def test_what_the_kernel_has_no_room_for_runs_on_torchs_own_ops(monkeypatch):
    monkeypatch.setattr(launch_rows, "WIDEST", 16)
    monkeypatch.setattr(rows, "launch_rows", None)
    monkeypatch.setattr(rows, "launch_static", None)
    x, scale, zero_point = random(3, 17), torch.tensor(0.1), torch.tensor(0, dtype=torch.int32)
    scheme = ("int8", False, "restricted")
    assert_rows(ops.quantize_rows(x, *scheme), x, scheme)
    *found, y = ops.norm_quantize_rows(x, None, None, "layer", 1e-6, *scheme, True)
    assert_rows(found, y, scheme)
    static = (scale, zero_point, -128, 127, torch.int8)
    q, y = ops.norm_quantize_static(x, None, None, "layer", 1e-6, *static, True)
    assert torch.equal(q, numerics.quantize_to(y, QParams(scale, zero_point), *static[2:]))
    assert torch.equal(rows.quantize_static(x, *static), numerics.quantize_to(x, QParams(*static[:2]), *static[2:]))


def test_fakes_have_the_results_shapes(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    x, weight = random(2, 3, 8), random(8)
    check_op(ops.quantize_rows.default, (x, "uint8", False, "restricted"))
    check_op(ops.norm_quantize_rows.default, (x, weight, weight, "layer", 1e-6, "int8", True, "full", True))
    static = (torch.tensor(0.1), torch.tensor(3, dtype=torch.int32), -128, 127, torch.int8)
    check_op(ops.norm_quantize_static.default, (x, weight, None, "rms", 1e-6, *static, False))
