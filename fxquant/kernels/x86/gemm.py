"""The integer GEMMs of torch with what follows the accumulators, on two-dimensional activations.

`onednn.qlinear_pointwise` fuses scale, bias, activation, residual and requantization, but knows one activation scale
for the whole tensor and costs about twenty microseconds a call whatever the size; `_int_mm` gives bare accumulators
in four. Per-token scales are therefore applied in passes of their own.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fxquant.kernels.reference.epilogue import activate
from fxquant.kernels.x86.packing import PackedWeight
from fxquant.registry import Registry

_qlinear = torch.ops.onednn.qlinear_pointwise

# The activations as oneDNN's post-op and its algorithm.
POST_OPS: Registry[tuple[str, str]] = Registry("activation")
POST_OPS.add("none", ("none", ""))
POST_OPS.add("relu", ("relu", ""))
POST_OPS.add("gelu", ("gelu", "none"))
POST_OPS.add("gelu_tanh", ("gelu", "tanh"))
POST_OPS.add("silu", ("swish", ""))
# 128·128·K stays within 2^24: float32 holds every accumulator.
_EXACT_DEPTH = 1024


class Output(NamedTuple):
    """How the result is stored: `scale` and `zero_point` matter to an 8-bit `dtype` only."""

    dtype: torch.dtype = torch.float32
    scale: float = 1.0
    zero_point: int = 0


FLOAT_OUTPUT = Output()


def finish_(y: Tensor, activation: str, residual: Tensor | None) -> Tensor:
    """Return activation(y) + residual, in the memory of `y` where torch can."""
    if activation == "gelu":
        torch._C._nn.gelu_(y)  # type: ignore[attr-defined]
    elif activation == "relu":
        y.relu_()
    elif activation != "none":
        y = activate(y, activation)
    return y if residual is None else y.add_(residual)


def accumulate(q: Tensor, weight: PackedWeight) -> Tensor:
    """Return Σ_k q·w as int32 (M, N), for q (M, K) int8, contiguous."""
    depth = q.shape[1]
    # torch 2.13's _int_mm takes the stride of a dimension of size 1 at its word, and reads elsewhere.
    if q.stride() != (depth, 1):
        q = q.as_strided(q.shape, (depth, 1))
    return torch._int_mm(q, weight.columns)


def rows_by_int_mm(
    q: Tensor, scale: Tensor, minus_zero_point: Tensor, weight: PackedWeight, bias: Tensor | None
) -> Tensor:
    """Return S_x·S_w·Σ_k (q − Z)·w + bias as float32 (M, N), for q (M, K) int8 and S_x, −Z (M, 1) float32."""
    sums = accumulate(q, weight)
    if q.shape[1] <= _EXACT_DEPTH:
        y = sums.float().addcmul_(minus_zero_point, weight.float_sums)
    else:
        y = sums.addcmul_(minus_zero_point.int(), weight.sums).float()
    y.mul_(weight.scale)
    return y.mul_(scale) if bias is None else torch.addcmul(bias, y, scale, out=y)


def rows_by_qlinear(
    q: Tensor, scale: Tensor, minus_zero_point: Tensor, weight: PackedWeight, bias: Tensor | None
) -> Tensor:
    """Return what `rows_by_int_mm` does for q (M, K) uint8, 128 more than its int8 form; −Z is that form's still.

    oneDNN takes the 128 off; the rest, Z·Σ w, is subtracted in float32.
    """
    y = fused(q, 1.0, 128, weight, None, "none", None, FLOAT_OUTPUT)
    y.addcmul_(minus_zero_point, weight.scaled_sums)
    return y.mul_(scale) if bias is None else torch.addcmul(bias, y, scale, out=y)


def single_row(q: Tensor, scale: float, zero_point: int, weight: PackedWeight, bias: Tensor | None) -> Tensor:
    """Return what `rows_by_int_mm` does where S_x and Z are numbers, meant for one row."""
    sums = accumulate(q, weight)
    if q.shape[1] <= _EXACT_DEPTH:
        y = sums.float().sub_(weight.float_sums, alpha=zero_point)
    else:
        y = sums.sub_(weight.sums, alpha=zero_point).float()
    y.mul_(weight.scale)
    return y.mul_(scale) if bias is None else torch.add(bias, y, alpha=scale)


def fused(
    q: Tensor,
    scale: float,
    zero_point: int,
    weight: PackedWeight,
    bias: Tensor | None,
    activation: str,
    residual: Tensor | None,
    output: Output,
) -> Tensor:
    """Return activation(S_x·S_w·Σ_k (q − Z)·w + bias) + residual as `output` says, for q (M, K) uint8.

    With a residual (M, N) float32 the activation must be "none", since oneDNN would apply it last.
    """
    post_op, algorithm = POST_OPS[activation]
    common = (q, scale, zero_point, weight.packed, weight.scale, weight.no_zero_point)
    stored = (output.scale, output.zero_point, output.dtype)
    if residual is None:
        y: Tensor = _qlinear.default(*common, bias, *stored, post_op, [], algorithm)
    else:
        assert activation == "none", "oneDNN applies the activation after the sum"
        y = _qlinear.binary(*common, residual, bias, *stored, 1.0, 0, "add", 1.0, "none", [], "")
    return y
