"""Linear layers with int8 weights, and the embedding: reference meaning.

With x = S_x·(q_x − Z_x) and w = S_w·q_w the product of a row of x and a row n of w is
S_x·S_w[n]·(Σ_k q_x[k]·q_w[n,k] − Z_x·Σ_k q_w[n,k]); both sums are exact in int32.
Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference", equation 7, with the weight's zero point 0.
"""

import torch
from torch import Tensor
from torch.nn import functional

from fxquant.kernels.integer import integer_matmul
from fxquant.kernels.library import define
from fxquant.kernels.reference.epilogue import finish, finish_exactly, requantize, scaled


def accumulate(x: Tensor, x_zero_point: Tensor, weight: Tensor) -> Tensor:
    """Return Σ_k (q_x − Z_x)·q_w as int32 (…, N), for x (…, K) int8 or uint8 and weight (N, K) int8."""
    return integer_matmul(x, weight.t()) - x_zero_point * weight.sum(dim=1, dtype=torch.int32)


def linear_int8(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    out_scale: Tensor | None,
    out_zero_point: Tensor | None,
    out_qmin: int,
    out_qmax: int,
    out_dtype: torch.dtype,
) -> Tensor:
    """Return activation(S_x·S_w·Σ_k (q_x − Z_x)·q_w + bias) + residual, quantized if `out_scale` is given.

    The product with the scales and the sum with the bias are rounded once, as a fused multiply-add does.

    - `x` is (…, K), int8 or uint8; `x_scale` (float32) and `x_zero_point` (int32) are () or, per token, (…, 1).
    - `weight` is (N, K) int8, symmetric; `weight_scale` is () or (N,).
    - `bias` is (N,): float32, or int32 in units of S_x·S_w, added to the sum; then `x_scale` must be ().
    - `residual` is float32 and broadcasts to the output, whose shape is (…, N).
    - `out_scale` () float32 with `out_zero_point` () int32: the output is `out_dtype` in [out_qmin, out_qmax].
      Without it the output is float32, and the other out_… arguments mean nothing.
    """
    sums = accumulate(x, x_zero_point, weight)
    if bias is not None and bias.dtype is torch.int32:
        sums, bias = sums + bias, None
    y = scaled(sums, x_scale * weight_scale, bias)
    return requantize(finish_exactly(y, activation, residual), out_scale, out_zero_point, out_qmin, out_qmax, out_dtype)


def fake_linear_int8(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    out_scale: Tensor | None,
    out_zero_point: Tensor | None,
    out_qmin: int,
    out_qmax: int,
    out_dtype: torch.dtype,
) -> Tensor:
    """Return an empty tensor of the shape and dtype of `linear_int8`."""
    dtype = torch.float32 if out_scale is None else out_dtype
    return x.new_empty((*x.shape[:-1], weight.shape[0]), dtype=dtype)


def linear_weight_int8(
    x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, residual: Tensor | None, activation: str
) -> Tensor:
    """Return activation(x·(S_w·q_w)ᵀ + bias) + residual, (…, N), in the dtype of the float `x` (…, K).

    `weight` is (N, K) int8, `weight_scale` () or (N,); the arithmetic is float32.
    """
    scale = weight_scale if weight_scale.ndim == 0 else weight_scale[:, None]
    y = functional.linear(x.float(), weight.float() * scale, bias)
    return finish(y, activation, residual).to(x.dtype)


def fake_linear_weight_int8(
    x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, residual: Tensor | None, activation: str
) -> Tensor:
    """Return an empty tensor of the shape and dtype of `linear_weight_int8`."""
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


LINEAR_INT8 = (
    "linear_int8(Tensor x, Tensor x_scale, Tensor x_zero_point, Tensor weight, Tensor weight_scale, Tensor? bias, "
    "Tensor? residual, str activation, Tensor? out_scale, Tensor? out_zero_point, int out_qmin, int out_qmax, "
    "ScalarType out_dtype) -> Tensor"
)
LINEAR_WEIGHT_INT8 = (
    "linear_weight_int8(Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias, Tensor? residual, "
    "str activation) -> Tensor"
)
define(LINEAR_INT8, linear_int8, fake_linear_int8)
define(LINEAR_WEIGHT_INT8, linear_weight_int8, fake_linear_weight_int8)
