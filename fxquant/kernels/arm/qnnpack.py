"""torch's qnnpack engine behind two ops, where a user asks for it: `fxquant::qnnpack_linear_int8` and
`qnnpack_linear_dynamic_int8`.

It knows one scale for all activations, adds a bias as int32 in units of S_x·S_w, and gives float32 only of activations
that it quantized itself. Its tensor types are deprecated in torch 2.13, so it is never taken unasked.
"""

import warnings
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from fxquant.errors import ConfigError
from fxquant.kernels.cpu.isa import VARIABLE, forced_isa
from fxquant.kernels.library import define
from fxquant.kernels.memo import Memo
from fxquant.kernels.reference import linear as reference
from fxquant.kernels.reference.epilogue import finish

ENGINE = "qnnpack"
# S_x·S_w/S_y: below, the engine's shift is too long; above, rounding the bias to S_x·S_w would cost whole output steps.
LEAST_SCALE, GREATEST_SCALE = 2.0**-32, 1.0
# Bias in units of S_x·S_w, with room for the accumulators in int32.
LARGEST_BIAS = 2.0**30

quantized = torch.ops.quantized
_PACKED = Memo[Any]()
_ENGINE_LOCK = Lock()


def asked_for() -> bool:
    """Say whether FXQUANT_ISA asks for qnnpack; `ConfigError` where this build of torch has it not."""
    if forced_isa() != ENGINE:
        return False
    found = engines()
    if ENGINE not in found:
        raise ConfigError(
            f"{VARIABLE} = {ENGINE!r}, but this build of torch has no such engine; it has {', '.join(found)}"
        )
    return True


def engines() -> list[str]:
    """Return the quantized engines that this build of torch has."""
    found: list[str] = torch.backends.quantized.supported_engines
    return found


def fits(x_scale: Tensor, weight_scale: Tensor, bias: Tensor | None, out_scale: Tensor) -> bool:
    """Say whether the engine computes a static linear of these scales to one output step."""
    unit = x_scale.double() * weight_scale.double()
    ratio = unit / out_scale.double()
    within = bool(((ratio >= LEAST_SCALE) & (ratio < GREATEST_SCALE)).all())
    return within and (bias is None or bool((bias.double().abs() <= unit * LARGEST_BIAS).all()))


def packed_weight(weight: Tensor, scale: Tensor, bias: Tensor | None) -> Any:
    """Return the engine's own form of an int8 weight (N, K), its scale () or (N,) and its bias."""
    return _PACKED.get(weight, (scale, bias), lambda: _pack(weight, scale, bias))


def _pack(weight: Tensor, scale: Tensor, bias: Tensor | None) -> Any:
    zero_points = torch.zeros(weight.shape[0], dtype=torch.int64)
    scales = scale.double().reshape(-1).expand(weight.shape[0]).contiguous()
    backend = torch.backends.quantized
    with _ENGINE_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the deprecation, which whoever asked for it has read of
        before = backend.engine
        backend.engine = ENGINE
        try:
            typed = torch._make_per_channel_quantized_tensor(weight.contiguous(), scales, zero_points, 0)
            return quantized.linear_prepack(typed, None if bias is None else bias.float())
        finally:
            backend.engine = before


def linear_int8(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    activation: str,
    out_scale: Tensor,
    out_zero_point: Tensor,
    out_qmin: int,
    out_qmax: int,
    out_dtype: torch.dtype,
) -> Tensor:
    """Return what the reference `linear_int8` does for scalar scales and 8-bit results, to one output step.

    `activation` is "none" or "relu". The engine's activations are uint8; int8 is stored 128 more, and so are its zero
    points.
    """
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    shape = (*x.shape[:-1], weight.shape[0])
    if rows.numel() == 0 or weight.numel() == 0:
        tail = (bias, None, activation, out_scale, out_zero_point, out_qmin, out_qmax, out_dtype)
        return reference.linear_int8(x, x_scale, x_zero_point, weight, weight_scale, *tail)
    packed = packed_weight(weight, weight_scale, bias)
    scale, zero_point = float(x_scale), int(x_zero_point) + _excess(x.dtype)
    typed = torch._make_per_tensor_quantized_tensor(_as_uint8(rows), scale, zero_point)
    run = quantized.linear_relu if activation == "relu" else quantized.linear
    excess = _excess(out_dtype)
    y: Tensor = run(typed, packed, float(out_scale), int(out_zero_point) + excess).int_repr().view(shape)
    if out_qmin + excess > 0 or out_qmax + excess < 255:
        y = y.clamp(out_qmin + excess, out_qmax + excess)
    return y.bitwise_xor(128).view(torch.int8) if excess else y


def _excess(dtype: torch.dtype) -> int:
    return 128 if dtype is torch.int8 else 0


def _as_uint8(q: Tensor) -> Tensor:
    return q.view(torch.uint8).bitwise_xor(128) if q.dtype is torch.int8 else q


def linear_dynamic_int8(
    x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, residual: Tensor | None, activation: str
) -> Tensor:
    """Return activation(x_q·wᵀ + bias) + residual, (…, N) float32, with x (…, K) as uint8 over the whole tensor."""
    shape = (*x.shape[:-1], weight.shape[0])
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    if rows.numel() == 0 or weight.numel() == 0:
        y = x.new_zeros(shape) if bias is None else bias.expand(shape).clone()
    else:
        y = quantized.linear_dynamic(rows, packed_weight(weight, weight_scale, bias), False).view(shape)
    return finish(y, activation, residual)


def _fake_linear_int8(x: Tensor, *rest: Any) -> Tensor:
    return x.new_empty((*x.shape[:-1], rest[2].shape[0]), dtype=rest[-1])


def _fake_linear_dynamic_int8(x: Tensor, weight: Tensor, *_: object) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


define(
    "qnnpack_linear_int8(Tensor x, Tensor x_scale, Tensor x_zero_point, Tensor weight, Tensor weight_scale, "
    "Tensor? bias, str activation, Tensor out_scale, Tensor out_zero_point, int out_qmin, int out_qmax, "
    "ScalarType out_dtype) -> Tensor",
    linear_int8,
    _fake_linear_int8,
)
define(
    "qnnpack_linear_dynamic_int8(Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias, Tensor? residual, "
    "str activation) -> Tensor",
    linear_dynamic_int8,
    _fake_linear_dynamic_int8,
)
