"""GELU as the kernels compute it: x/2·(1 + erf(x/√2)) = max(x, 0) − a·Φ(−a) with a = |x|, to 5e-7.

a·Φ(−a) = a/2·erfc(a/√2) is a cubic polynomial in t = 5.75·a − n, |t| ≤ 1/2, for each whole n up to 30, each fitted to
the least greatest error; beyond it is 0. The C++ kernels compute the same, operation by operation, so results are equal
to the bit (cpu/csrc/epilogue.h, gelu_table.h).
"""

import torch
from torch import Tensor

PIECES = 5.75  # per unit
_ROUNDS = 12582912.0  # 1.5·2²³: the sum with it is rounded to a whole number
# From the cubic coefficient to the constant, a row each; a column is a piece.
_TABLE = (
    (
        5.8304457e-05, 2.3723974e-04, 4.4310742e-04, 5.9231673e-04, 6.702197e-04, 6.7475764e-04,
        6.155367e-04, 5.105423e-04, 3.815501e-04, 2.4955388e-04, 1.3123312e-04, 3.7064226e-05,
        -2.8878192e-05, -6.781257e-05, -8.443704e-05, -8.501209e-05, -7.578598e-05, -6.197658e-05,
        -4.7321882e-05, -3.408042e-05, -2.3299592e-05, -1.5187329e-05, -9.467806e-06, -5.657806e-06,
        -3.2466712e-06, -1.7914987e-06, -9.5161244e-07, -4.8703293e-07, -2.40344e-07, -1.14434e-07,
        -5.259602e-08, 0.0,
    ),
    (
        -1.2083188e-02, -1.1691291e-02, -1.0659648e-02, -9.09037e-03, -7.1783713e-03, -5.143724e-03,
        -3.1946637e-03, -1.496981e-03, -1.5567975e-04, 7.894237e-04, 1.3556974e-03, 1.6014887e-03,
        1.6068363e-03, 1.4556785e-03, 1.2226003e-03, 9.653044e-04, 7.2241656e-04, 5.151808e-04,
        3.5136426e-04, 2.2977914e-04, 1.443633e-04, 8.7264336e-05, 5.081034e-05, 2.8523542e-05,
        1.5449574e-05, 8.079042e-06, 4.08092e-06, 1.9920524e-06, 9.400474e-07, 4.2898736e-07,
        1.893677e-07, 0.0,
    ),
    (
        8.695791e-02, 6.306561e-02, 4.0585827e-02, 2.074245e-02, 4.4250134e-03, -7.899847e-03,
        -1.62011e-02, -2.0826966e-02, -2.2398857e-02, -2.1682497e-02, -1.9463351e-02, -1.6447283e-02,
        -1.31977545e-02, -1.0110942e-02, -7.42232e-03, -5.2341013e-03, -3.552183e-03, -2.3232426e-03,
        -1.4658724e-03, -8.930119e-04, -5.2560866e-04, -2.99049e-04, -1.6454542e-04, -8.758907e-05,
        -4.5119734e-05, -2.249818e-05, -1.0861452e-05, -5.0777394e-06, -2.2991446e-06, -1.0084118e-06,
        -4.2848927e-07, 0.0,
    ),
    (
        0.0, 7.495032e-02, 1.2660326e-01, 1.5700464e-01, 1.6926834e-01, 1.6719052e-01,
        1.5481417e-01, 1.3601655e-01, 1.1417985e-01, 9.198177e-02, 7.131484e-02, 5.3319056e-02,
        3.849617e-02, 2.6867475e-02, 1.8140044e-02, 1.1854951e-02, 7.5024175e-03, 4.5992886e-03,
        2.732024e-03, 1.572807e-03, 8.7768334e-04, 4.7482344e-04, 2.4906208e-04, 1.2667906e-04,
        6.248236e-05, 2.9887762e-05, 1.3865524e-05, 6.23887e-06, 2.7228211e-06, 1.1526306e-06,
        4.7329434e-07, 0.0,
    ),
)  # fmt: skip
_COEFFICIENTS = torch.tensor(_TABLE, dtype=torch.float32)


def fma(a: Tensor, b: Tensor | float, c: Tensor | float) -> Tensor:
    """Return a·b + c of float32 numbers rounded once: float64 holds the product whole."""
    return (a.double() * _wide(b) + _wide(c)).to(torch.float32)


def _wide(value: Tensor | float) -> Tensor | float:
    return value.double() if isinstance(value, Tensor) else value


def gelu(x: Tensor) -> Tensor:
    """Return x/2·(1 + erf(x/√2)) for float32 x, to 5e-7, equal to the bit to the C++ kernels'."""
    a = x.abs().clamp(max=torch.tensor(31 / PIECES).item())
    n = fma(a, PIECES, _ROUNDS) - _ROUNDS
    t = fma(a, PIECES, -n)
    p, *rest = _COEFFICIENTS.to(x.device)[:, n.nan_to_num().long()]
    for coefficient in rest:
        p = fma(p, t, coefficient)
    result: Tensor = torch.relu(x) - p
    return result
