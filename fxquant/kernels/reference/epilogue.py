"""What follows the accumulators of an integer kernel: activation, residual, requantization."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from fxquant import numerics
from fxquant.kernels.reference.gelu import fma, gelu
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


def scaled(sums: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """Return sums·scale + bias, rounded once to float32, for int32 `sums` and float32 `scale` and `bias`."""
    return fma(sums.to(torch.float32), scale, 0.0 if bias is None else bias)


def finish_exactly(y: Tensor, activation: str, residual: Tensor | None) -> Tensor:
    """Return activation(y) + residual with the kernels' own gelu, which torch's differs from by up to 5e-7."""
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
