"""What follows the accumulators of an integer kernel: activation, residual, requantization."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from fxquant import numerics
from fxquant.registry import Registry
from fxquant.spec import QParams


def _identity(x: Tensor) -> Tensor:
    return x


def _gelu_tanh(x: Tensor) -> Tensor:
    return functional.gelu(x, approximate="tanh")


ACTIVATIONS: Registry[Callable[[Tensor], Tensor]] = Registry("activation")
ACTIVATIONS.add("none", _identity)
ACTIVATIONS.add("relu", torch.relu)
ACTIVATIONS.add("gelu", functional.gelu)
ACTIVATIONS.add("gelu_tanh", _gelu_tanh)
ACTIVATIONS.add("silu", functional.silu)


def activate(x: Tensor, activation: str) -> Tensor:
    """Return the activation function called `activation` of `x`; `ConfigError` names the known ones."""
    return ACTIVATIONS[activation](x)


# erf(x/√2)/x as a polynomial in u = 2·x²/5.2² − 1 on |x| ≤ 5.2, from the highest power down, fitted to the least
# greatest error of gelu, 1e-6. The C++ kernels compute the same (x86/csrc/epilogue.h), operation by operation.
GELU_REACH = 5.2
GELU_POLYNOMIAL = (
    -0.0007764850161038339,
    0.0023773780558258295,
    -0.002937507815659046,
    0.004010343924164772,
    -0.009084665216505527,
    0.016730207949876785,
    -0.025239301845431328,
    0.03607754036784172,
    -0.04939768463373184,
    0.06394783407449722,
    -0.07986397296190262,
    0.10005123168230057,
    -0.13548724353313446,
    0.2718999683856964,
)


def fma(a: Tensor, b: Tensor | float, c: Tensor | float) -> Tensor:
    """Return a·b + c of float32 numbers rounded once: float64 holds the product whole."""
    return (a.double() * _wide(b) + _wide(c)).to(torch.float32)


def _wide(value: Tensor | float) -> Tensor | float:
    return value.double() if isinstance(value, Tensor) else value


def gelu(x: Tensor) -> Tensor:
    """Return x/2·(1 + erf(x/√2)) for float32 x, to 1e-6, equal to the bit to the C++ kernels'."""
    reach = torch.tensor(GELU_REACH, dtype=torch.float32)
    t = x.clamp(-GELU_REACH, GELU_REACH)
    u = fma(t * t, 2.0 / (reach * reach), -1.0)
    p = torch.full_like(u, GELU_POLYNOMIAL[0])
    for coefficient in GELU_POLYNOMIAL[1:]:
        p = fma(p, u, coefficient)
    half = x * 0.5
    return fma(half, fma(p, t, x - t).clamp(-1.0, 1.0), half)


def scaled(sums: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """Return sums·scale + bias, rounded once to float32, for int32 `sums` and float32 `scale` and `bias`."""
    return fma(sums.to(torch.float32), scale, 0.0 if bias is None else bias)


def finish_exactly(y: Tensor, activation: str, residual: Tensor | None) -> Tensor:
    """Return activation(y) + residual with the kernels' own gelu, which torch's differs from by up to 1e-6."""
    if activation != "gelu":
        return finish(y, activation, residual)
    y = gelu(y)
    return y if residual is None else y + residual


def finish(y: Tensor, activation: str, residual: Tensor | None) -> Tensor:
    """Return activation(y) + residual; `residual` broadcasts to the shape of `y`."""
    y = activate(y, activation)
    return y if residual is None else y + residual


def requantize(
    y: Tensor, scale: Tensor | None, zero_point: Tensor | None, qmin: int, qmax: int, dtype: torch.dtype
) -> Tensor:
    """Return `y` quantized per tensor to `dtype`, or `y` itself where no scale is given."""
    if scale is None:
        return y
    assert zero_point is not None, "an output scale comes with its zero point"
    return numerics.quantize_to(y, QParams(scale, zero_point), qmin, qmax, dtype)
