"""Linear layers with float8 activations and weights: reference meaning.

With x = S_x·q_x and w = S_w·q_w, y = activation(S_x·S_w·Σ_k q_x·q_w + bias) + residual. A product of two float8 numbers
is exact in float32, which the sum is of.
"""

import torch
from torch import Tensor
from torch.nn import functional

from fxquant.kernels.library import define
from fxquant.kernels.reference.epilogue import finish


def linear_fp8(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    dtype: torch.dtype,
) -> Tensor:
    """Return activation(S_x·S_w·Σ_k q_x·q_w + bias) + residual, (…, N), as `dtype`.

    - `x` is (…, K) float8; `x_scale` (float32) is () or, per token, (…, 1).
    - `weight` is (N, K) float8; `weight_scale` (float32) is () or (N,).
    - `bias` is (N,); `residual` broadcasts to the output.
    """
    y = functional.linear(x.float(), weight.float()) * (x_scale * weight_scale)
    return finish(y if bias is None else y + bias, activation, residual).to(dtype)


def fake_linear_fp8(x: Tensor, x_scale: Tensor, weight: Tensor, *rest: object) -> Tensor:
    """Return an empty tensor of the shape and dtype of `linear_fp8`."""
    dtype = rest[-1]
    assert isinstance(dtype, torch.dtype)
    return x.new_empty((*x.shape[:-1], weight.shape[0]), dtype=dtype)


SCHEMA = (
    "(Tensor x, Tensor x_scale, Tensor weight, Tensor weight_scale, Tensor? bias, Tensor? residual, str activation, "
    "ScalarType dtype) -> Tensor"
)
define(f"linear_fp8{SCHEMA}", linear_fp8, fake_linear_fp8)
