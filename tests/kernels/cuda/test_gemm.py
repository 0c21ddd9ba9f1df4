"""8-bit products: integers to the bit, what follows them within a few roundings; any size, padded or not."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from linears import ACTIVATIONS, FLOAT_OUTPUT, integers, random

from fxquant.errors import ConfigError
from fxquant.kernels.cuda import gemm, launch_gemm

pytestmark = pytest.mark.usefixtures("interpreted")
ops = torch.ops.fxquant
# Of what opcheck tests, all but the compilation of each op by itself, which takes seconds.
check_op = partial(torch.library.opcheck, test_utils=("test_schema", "test_faketensor"))
few = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SIZES = st.tuples(st.integers(1, 20), st.integers(1, 40), st.integers(1, 80))


def scales(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 0.01 + 0.002


def product(x, x_scale, zero_point, weight, weight_scale, bias):
    """Return the linear in float64, from integer products."""
    sums = (x.long() - zero_point.long()) @ weight.long().t()
    return sums.double() * x_scale.double() * weight_scale.double() + (0 if bias is None else bias.double())


@few
@given(size=SIZES, dtype=st.sampled_from([torch.int8, torch.uint8]), seed=st.integers(0, 99))
def test_integers_are_exact(size, dtype, seed):
    m, n, k = size
    x, weight = integers(m, k, dtype=dtype, seed=seed), integers(n, k, seed=seed + 1, low=-127)
    zero_point = integers(m, 1, dtype=dtype, seed=seed + 2).to(torch.int32)
    one = torch.ones(())
    operands = (x, torch.ones(m, 1), zero_point, gemm.pack(weight), one, gemm.row_sums(weight))
    y = ops.int8_gemm(*operands, None, None, "none", *FLOAT_OUTPUT)
    assert torch.equal(y.double(), product(x, one, zero_point, weight, one, None))


@few
@given(
    size=SIZES,
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    by_row=st.booleans(),
    by_column=st.booleans(),
    affine=st.booleans(),
    extras=st.booleans(),
    seed=st.integers(0, 99),
)
def test_what_follows_the_products(size, activation, by_row, by_column, affine, extras, seed):
    m, n, k = size
    x, weight = integers(m, k, seed=seed), integers(n, k, seed=seed + 1, low=-127)
    x_scale, weight_scale = scales(*((m, 1) if by_row else ())), scales(*((n,) if by_column else ()), seed=1) / 10
    zero_point = integers(*x_scale.shape, seed=2).to(torch.int32)
    bias, residual = (random(n), random(m, n)) if extras else (None, None)
    shift = (zero_point, gemm.row_sums(weight)) if affine else (None, None)
    y = ops.int8_gemm(
        x, x_scale, shift[0], gemm.pack(weight), weight_scale, shift[1], bias, residual, activation, *FLOAT_OUTPUT
    )
    wanted = product(x, x_scale, zero_point * affine, weight, weight_scale, bias)
    wanted = ACTIVATIONS[activation](wanted) + (0 if residual is None else residual.double())
    torch.testing.assert_close(y.double(), wanted, rtol=2e-6, atol=2e-6)


@few
@given(size=SIZES, activation=st.sampled_from(["silu", "gelu", "none"]), biased=st.booleans(), seed=st.integers(0, 99))
def test_gate(size, activation, biased, seed):
    m, n, k = size
    x, weight = integers(m, k, dtype=torch.uint8, seed=seed), integers(2 * n, k, seed=seed + 1, low=-127)
    x_scale, weight_scale = scales(m, 1), scales(2 * n, seed=1) / 10
    zero_point = integers(m, 1, dtype=torch.uint8, seed=2).to(torch.int32)
    bias = random(2 * n) if biased else None
    operands = (x, x_scale, zero_point, gemm.pack(weight), weight_scale, gemm.row_sums(weight), bias)
    gate, up = product(x, x_scale, zero_point, weight, weight_scale, bias).chunk(2, -1)
    wanted = ACTIVATIONS[activation](gate) * up
    y = ops.int8_gated_gemm(*operands, activation, *FLOAT_OUTPUT)
    torch.testing.assert_close(y.double(), wanted, rtol=4e-6, atol=4e-6)
    out = (torch.tensor(0.05), torch.tensor(-3, dtype=torch.int32), -128, 127, torch.int8)
    q = ops.int8_gated_gemm(*operands, activation, *out)
    assert (q.double() - (wanted / 0.05).round().sub(3).clamp(-128, 127)).abs().max() <= 1


def operands(m=5, n=24, k=32):
    weight = integers(n, k, seed=1, low=-127)
    return integers(m, k), scales(m, 1), None, weight, scales(n, seed=1) / 10, None


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8], ids=str)
def test_result_as_integers(dtype):
    given, info = operands(), torch.iinfo(dtype)
    out = (torch.tensor(0.04), torch.tensor(info.max // 3, dtype=torch.int32), info.min, info.max, dtype)
    q = ops.int8_gemm(*given, None, None, "none", *out)
    y = ops.int8_gemm(*given, None, None, "none", *FLOAT_OUTPUT)
    assert q.dtype is dtype
    assert torch.equal(q, ((y / out[0]).round() + out[1]).clamp(info.min, info.max).to(dtype))


def test_integer_bias_is_added_to_the_sums():
    x, _, _, weight, _, _ = operands()
    bias, one = integers(24, dtype=torch.int32) // 8, torch.ones(())
    y = ops.int8_gemm(x, one, None, weight, one, None, bias, None, "none", *FLOAT_OUTPUT)
    assert torch.equal(y, (x.long() @ weight.long().t() + bias).float())


def test_residual_that_broadcasts():
    given, residual = operands(), random(24)
    y = ops.int8_gemm(*given, None, residual, "none", *FLOAT_OUTPUT)
    assert torch.equal(y, ops.int8_gemm(*given, None, None, "none", *FLOAT_OUTPUT) + residual)


def test_leading_axes_and_views():
    x, x_scale, *rest = operands(m=6)
    flat = ops.int8_gemm(x, x_scale, *rest, None, None, "gelu", *FLOAT_OUTPUT)
    wide = torch.stack([x, x]).transpose(0, 1).reshape(6, 2, 32)[:, 1].reshape(2, 3, 32)
    assert torch.equal(
        ops.int8_gemm(wide, x_scale.reshape(2, 3, 1), *rest, None, None, "gelu", *FLOAT_OUTPUT), flat.reshape(2, 3, 24)
    )


def test_bfloat16_is_the_result_rounded():
    given = operands()
    y = ops.int8_gemm(*given, None, None, "none", *FLOAT_OUTPUT)
    narrow = ops.int8_gemm(*given, None, None, "none", None, None, 0, 0, torch.bfloat16)
    assert narrow.dtype is torch.bfloat16
    # Triton's interpreter cuts off where a GPU rounds.
    torch.testing.assert_close(narrow.float(), y, rtol=2**-7, atol=0)


@pytest.mark.parametrize("size", [(0, 4, 32), (3, 4, 0), (3, 0, 32)], ids=str)
def test_nothing_to_multiply(size):
    m, n, k = size
    x, weight, bias = integers(m, k), integers(n, k), random(n)
    y = ops.int8_gemm(x, torch.ones(()), None, weight, torch.ones(n), None, bias, None, "none", *FLOAT_OUTPUT)
    assert torch.equal(y, bias.expand(m, n))


@pytest.mark.parametrize("depth", [15, 16, 17])
def test_packed_rows_are_unpacked(depth):
    weight = integers(3, depth)
    packed = gemm.pack(weight)
    assert packed.shape[1] % gemm.ALIGNMENT == 0
    assert packed[:, depth:].count_nonzero() == 0
    assert torch.equal(gemm.LAYOUTS["zeros_behind_rows"](packed, weight.to("meta")), weight)


def test_fakes_have_the_results_shapes(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    given = operands()
    residual = random(5, 24)
    check_op(ops.int8_gemm.default, (*given, random(24), residual, "gelu", *FLOAT_OUTPUT))
    out = (torch.tensor(0.04), torch.tensor(1, dtype=torch.int32), -128, 127, torch.int8)
    check_op(ops.int8_gated_gemm.default, (*given, None, "silu", *out))


@pytest.mark.parametrize(("rows", "expected"), [(1, 16), (16, 16), (17, 32), (1000, 1024)])
def test_shapes_are_classed_by_their_rows(rows, expected):
    assert launch_gemm.row_class(rows) == expected


def test_tiles_that_are_measured_fit_the_rows_and_the_registers():
    tiles = [SimpleNamespace(kwargs={"BLOCK_M": m, "BLOCK_N": n}) for m, n, *_ in launch_gemm.TILES]
    short = launch_gemm._fitting(tiles, {"m_class": 16}, GATED=False)
    assert short
    assert all(tile.kwargs["BLOCK_M"] == 16 for tile in short)
    gated = launch_gemm._fitting(tiles, {"m_class": 4096}, GATED=True)
    assert max(tile.kwargs["BLOCK_M"] * tile.kwargs["BLOCK_N"] for tile in gated) == 128 * 128
    assert launch_gemm._fitting(tiles, {"m_class": 4096}, GATED=False) == tiles


def test_operands_lie_in_any_order():
    x, weight, scale = integers(7, 32), integers(5, 32, seed=1, low=-127), scales(5)
    operands = (x, scales(7, 1), None, weight, scale, None, random(5))
    expected = ops.int8_gemm(*operands, None, "none", *FLOAT_OUTPUT)
    turned = [each.t().contiguous().t() if each is not None and each.ndim == 2 else each for each in operands]
    apart = [each if each is None or each.ndim != 1 else torch.stack((each, each), 1)[:, 0] for each in turned]
    assert not apart[3].is_contiguous() and not apart[4].is_contiguous()
    assert torch.equal(ops.int8_gemm(*apart, None, "none", *FLOAT_OUTPUT), expected)


def test_an_unknown_activation_is_refused():
    x, one = integers(2, 16), torch.ones(())
    with pytest.raises(ConfigError, match=r"'geluu'.*did you mean 'gelu'"):
        ops.int8_gemm(x, one, None, x, one, None, None, None, "geluu", *FLOAT_OUTPUT)
    with pytest.raises(ConfigError, match=r"'geluu'.*did you mean 'gelu'"):
        ops.int8_gated_gemm(x, one, None, x, one, None, None, "geluu", *FLOAT_OUTPUT)
