"""Float8 rows and products, and 8-bit products by torch: each way to compute them, and the graphs that they are in."""

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from linears import random
from torch import nn
from torch.nn import functional

import fxquant as fxq
import fxquant.kernels
from fxquant import numerics
from fxquant.kernels.cuda import scaled_mm, triton_support
from fxquant.kernels.cuda.choice import VARIABLE
from fxquant.spec import QuantSpec

assert fxquant.kernels  # defines the ops
ops = torch.ops.fxquant
FLOAT8 = torch.float8_e4m3fn
SPEC = QuantSpec(dtype="float8_e4m3fn", granularity="per-token", symmetric=True, dynamic=True)
few = settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=[Phase.reuse, Phase.generate],  # the interpreter takes its time, and seeds are not to be shrunk
)
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")  # 1/(1 + e^u) is 0
WAYS = ["triton", "scaled_mm", "scaled_mm_rowwise"]


def product(m, n, k, seed=0, by_row=True, by_column=True):
    """Return float8 x and weight with their scales."""
    x, weight = (random(size, k, seed=seed + size).mul(60).to(FLOAT8) for size in (m, n))
    scales = random(m + n, seed=seed).abs() + 0.1
    return x, scales[:m, None] if by_row else scales[0], weight, scales[m:] if by_column else scales[1]


@few
@given(st.integers(1, 5), st.integers(1, 70), st.sampled_from([1e-6, 1.0, 1e4]), st.integers(0, 99))
def test_rows_are_quantized_as_numerics_says(interpreted, rows, columns, size, seed):
    x = random(rows, columns, seed=seed) * size
    q, scale, zero_point = ops.quantize_rows(x, "float8_e4m3fn", True, "restricted")
    qparams = numerics.choose_qparams(x, SPEC)
    assert torch.equal(scale, qparams.scale)
    assert not zero_point.any()
    assert torch.equal(q.float(), numerics.quantize(x, qparams, SPEC).float())


@few
@given(
    st.integers(1, 20), st.integers(1, 40), st.integers(1, 80), st.sampled_from(["none", "gelu", "silu"]),
    st.booleans(), st.booleans(), st.sampled_from(WAYS), st.integers(0, 99),
)  # fmt: skip
def test_products_in_each_way(interpreted, m, n, k, activation, by_row, by_column, way, seed):
    rowwise = way == "scaled_mm_rowwise"  # it is a candidate where no more than a bias follows, and rounds before it
    activation, dtype = ("none", torch.bfloat16) if rowwise else (activation, torch.float32)
    operands = product(m, n, k, seed, by_row, by_column)
    bias, residual = random(n), None if rowwise else random(m, n)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, f"fp8_gemm={way}")
        y = ops.fp8_gemm(*operands, bias, residual, activation, dtype)
    expected = ops.linear_fp8(*operands, bias, residual, activation, torch.float32)
    magnitude = ops.linear_fp8(operands[0].float().abs().to(FLOAT8), *operands[1:2],
                               operands[2].float().abs().to(FLOAT8), operands[3], None, None, "none",
                               torch.float32) + bias.abs() + 1  # fmt: skip
    assert y.dtype is dtype
    assert ((y.float() - expected).abs() <= magnitude * (2.0**-6 if rowwise else 2.0**-20)).all()


@few
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 80), st.booleans(), st.booleans(), st.integers(0, 99))
def test_int8_products_by_torch_are_those_of_triton(interpreted, m, n, k, unsigned, requantized, seed):
    generator = torch.Generator().manual_seed(seed)
    low, high, dtype = (0, 256, torch.uint8) if unsigned else (-128, 128, torch.int8)
    x = torch.randint(low, high, (m, k), generator=generator).to(dtype)
    weight = torch.randint(-127, 128, (n, k), generator=generator).to(torch.int8)
    zero_point = torch.randint(low, high, (m, 1), generator=generator, dtype=torch.int32)
    packed = functional.pad(weight, (0, -k % 16))
    operands = (x, random(m, 1).abs() * 0.01, zero_point, packed, random(n).abs(), weight.sum(1, dtype=torch.int32))
    out = (torch.tensor(0.3), torch.tensor(7, dtype=torch.int32), -128, 127, torch.int8)
    tail = (random(n), random(m, n), "gelu", *(out if requantized else (None, None, 0, 0, torch.float32)))
    found = {}
    for way in ("triton", "int_mm"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(VARIABLE, f"int8_gemm={way}")
            found[way] = ops.int8_gemm(*operands, *tail)
    assert torch.equal(found["int_mm"], found["triton"])


@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (16, 7, 9), (17, 8, 8), (40, 33, 70)])
def test_int_mm_takes_any_shape(m, n, k):
    generator = torch.Generator().manual_seed(m)
    x, weight = (torch.randint(-128, 128, (size, k), generator=generator).to(torch.int8) for size in (m, n))
    sums = scaled_mm.int_mm(x, weight)
    assert torch.equal(sums[:m, :n].long(), x.long() @ weight.long().t())


def test_opcheck():
    arguments = (*product(3, 5, 20), random(5), random(5), "gelu", torch.float32)
    torch.library.opcheck(ops.fp8_gemm.default, arguments, test_utils="test_faketensor")


def test_older_gpus_have_no_float8(monkeypatch):
    monkeypatch.setattr(triton_support, "capability", lambda device: (8, 6))
    text = "products of float8 need compute capability 8.9; cuda:0 has 8.6"
    assert triton_support.float8_refusal(torch.device("cuda", 0)) == text
    assert triton_support.float8_refusal(torch.device("cpu")) is None


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(40), nn.Linear(40, 70), nn.Linear(70, 40)

    def forward(self, x):
        return x + self.down(functional.gelu(self.up(self.norm(x))))


@pytest.mark.parametrize("backend", ["cuda", "reference"])
def test_the_fp8_recipe(backend, tmp_path):
    torch.manual_seed(0)
    model, x = Block().eval(), random(2, 5, 40)
    qdq = fxq.convert(fxq.prepare(fxq.capture(model, (x,)), backend, "fp8"))
    lowered = fxq.lower(qdq)
    ledger = fxq.ledger(lowered)
    assert {row.kernel for row in ledger.rows if row.op.startswith("linear")} == {
        "fxquant.fp8_gemm" if backend == "cuda" else "fxquant.linear_fp8"
    }
    assert ledger.coverage == 1
    torch.testing.assert_close(lowered(x), qdq(x), rtol=1e-5, atol=1e-5)
    assert numerics.sqnr(model(x).detach(), lowered(x)) > 25
    loaded = fxq.load(fxq.save(lowered, tmp_path / "artifact"))
    assert torch.equal(loaded(x), lowered(x))


def test_another_backend_says_why_it_has_no_float8():
    x = random(3, 8)
    qdq = fxq.convert(fxq.prepare(fxq.capture(nn.Linear(8, 8).eval(), (x,)), "cuda", "fp8"))
    (row,) = (row for row in fxq.ledger(fxq.lower(qdq, "x86")).rows if "linear" in row.op)
    assert "takes x.dtype = uint8 or int8, the recipe asks for float8_e4m3fn" in row.reason
