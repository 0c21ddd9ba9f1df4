"""Rows are quantized at run time as fxquant/numerics.py does it, to the bit: ties, tiny and huge scales, denormals."""

import pytest
import torch

import fxquant.kernels
from fxquant import numerics
from fxquant.kernels.cpu import packed
from fxquant.spec import QuantSpec

assert fxquant.kernels  # defines the ops
WIDTH = 192
SCHEMES = [("uint8", False, "restricted"), ("uint8", True, "restricted"), ("int8", False, "restricted")]
SCHEMES += [("int8", True, "restricted"), ("int8", True, "full")]


pytestmark = pytest.mark.usefixtures("native_isa")


@pytest.fixture(params=SCHEMES, ids=lambda scheme: "-".join(map(str, scheme)))
def scheme(request):
    return request.param


def through_a_kernel(x, scheme):
    """Return S·(q − Z) of each row of x, from a linear whose weight is the identity."""
    weight = torch.eye(x.shape[-1], dtype=torch.int8)
    one = (packed.pack(weight), torch.ones(()), packed.column_sums(weight), None, None, "none")
    return torch.ops.fxquant.packed_linear_dynamic_int8(x, *one, *scheme)


def spec_of(scheme):
    dtype, symmetric, value_range = scheme
    return QuantSpec(dtype=dtype, granularity="per-token", symmetric=symmetric, range=value_range, dynamic=True)


def assert_exact(x, scheme):
    spec = spec_of(scheme)
    expected = numerics.fake_quantize(x, numerics.choose_qparams(x, spec), spec)
    found = through_a_kernel(x, scheme)
    wrong = (found != expected).nonzero()
    assert not len(wrong), f"{len(wrong)} of {x.numel()}, first x = {x[tuple(wrong[0])].item()!r}"


def rows(exponents, seed=0):
    """Rows of normal numbers times powers of two, off centre by up to three deviations."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.tensor(exponents, dtype=torch.float64)[:, None].exp2()
    values = torch.randn(len(exponents), WIDTH, generator=generator, dtype=torch.float64)
    shift = torch.randn(len(exponents), 1, generator=generator, dtype=torch.float64) * 3
    return ((values + shift) * size).clamp(-3.4e38, 3.4e38).float()


def test_random_rows_of_every_magnitude(scheme):
    """Two million values."""
    exponents = torch.arange(10_000) % 276 - 149
    assert_exact(rows(exponents.tolist()), scheme)


def around_ties(x, scheme, seed=2):
    """Replace all but the edges of rows by numbers at S·(k + 1/2), or up to two units in the last place beside."""
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    scale = numerics.choose_qparams(x, spec_of(scheme)).scale
    generator = torch.Generator().manual_seed(seed)
    halves = torch.randint(-255, 256, x.shape, generator=generator) + 0.5
    halves[:, ::2] = torch.randint(-8, 8, halves[:, ::2].shape, generator=generator) + 0.5
    ties = (scale * halves).clamp(low, high)
    for _ in range(2):
        away = torch.randint(-1, 2, x.shape, generator=generator)
        ties = torch.nextafter(ties, torch.where(away == 0, ties, away * torch.inf)).clamp(low, high)
    ties[:, :1], ties[:, 1:2] = low, high
    assert torch.equal(numerics.choose_qparams(ties, spec_of(scheme)).scale, scale)
    return ties


def test_ties_and_their_neighbours(scheme):
    """For scales that their own rows give."""
    exponents = torch.arange(6_000) % 240 - 119
    assert_exact(around_ties(rows(exponents.tolist(), 1), scheme), scheme)


def test_ties_where_a_remainder_is_subnormal(scheme):
    """x − q·S has bits below the least float; S stands beside powers of two, whose reciprocals are the worst."""
    exponents = torch.arange(-119, -95, dtype=torch.float64).repeat(200)
    near = torch.arange(len(exponents)) % 81 - 40
    edge = exponents.exp2() * (1 + near * 2.0**-23) * (127 if scheme[1] and scheme[2] != "full" else 127.5)
    x = edge[:, None].float() * torch.linspace(-1, 1, WIDTH)
    assert_exact(around_ties(x, scheme), scheme)


def test_exact_ties_round_to_even(scheme):
    """With edges that make S a power of two, every x = S·(k + 1/2) is a float."""
    spec = spec_of(scheme)
    span = {("uint8", False): 255, ("uint8", True): 127, ("int8", False): 255}.get(scheme[:2], 127)
    if scheme[2] == "full":
        pytest.skip("S = 2·max|x|/255 makes no power of two of a float")
    for exponent in (-119, -101, -100, -99, -60, 0, 60, 118):
        low = -span // 2 if span == 255 else -span
        x = torch.arange(WIDTH) - WIDTH // 2 + 0.5
        x[0], x[1] = low, low + span if span == 255 else span
        x = (x.double() * 2.0**exponent).float()[None]
        assert numerics.choose_qparams(x, spec).scale.item() == 2.0**exponent
        assert_exact(x, scheme)


@pytest.mark.parametrize("magnitude", [0.0, 1.4e-45, 1e-42, 1.1754944e-38, 2.0**-120, 255 * 2.0**-120], ids=str)
def test_rows_of_almost_nothing(scheme, magnitude):
    x = (torch.arange(WIDTH).float() / (WIDTH - 1) * 2 - 1)[None] * magnitude
    assert_exact(torch.cat([x, x.relu(), -x.relu()]), scheme)


def test_rows_up_to_the_greatest_float(scheme):
    greatest = torch.finfo(torch.float32).max
    x = torch.linspace(-1, 1, WIDTH)[None] * greatest
    assert_exact(torch.cat([x, x.relu(), -x.relu(), x / 2, torch.full_like(x, greatest)]), scheme)


@pytest.mark.parametrize("width", [1, 2, 7, 15, 16, 17, 63, 64, 65, 129])
def test_widths_that_are_no_whole_vector(scheme, width):
    assert_exact(rows([0, 3, -110, 100], 5)[:, :width].contiguous(), scheme)
