import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from fxquant.kernels.reference.epilogue import finish_exactly, fma, gelu, scaled

floats = st.floats(-(2.0**60), 2.0**60, width=32, allow_subnormal=False)


@given(floats, floats, floats)
def test_fma_rounds_once(a, b, c):
    y = fma(torch.tensor(a), torch.tensor(b), torch.tensor(c))
    exact = np.longdouble(a) * np.longdouble(b) + np.longdouble(c)
    assert abs(float(y) - float(exact)) <= abs(np.spacing(np.float32(exact))) / 2 * (1 + 1e-6) + 2.0**-149


def test_gelu_is_within_its_error():
    x = torch.linspace(-12, 12, 100_001)
    exact = functional.gelu(x.double())
    assert (gelu(x).double() - exact).abs().max() < 5e-7


def test_gelu_beyond_its_reach_is_exact():
    assert gelu(torch.tensor([-1e4, -6.0, 6.0, 1e4])).tolist() == [0.0, 0.0, 6.0, 1e4]


def test_scaled_without_a_bias():
    assert scaled(torch.tensor([3, -4], dtype=torch.int32), torch.tensor(0.5), None).tolist() == [1.5, -2.0]


def test_residual_comes_after_the_activation():
    y = finish_exactly(torch.tensor([-9.0]), "gelu", torch.tensor([2.0]))
    assert y.tolist() == [2.0]
