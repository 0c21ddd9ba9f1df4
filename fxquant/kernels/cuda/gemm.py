"""`fxquant::int8_gemm` and `int8_gated_gemm`: linears of integer activations and weights, with what follows them.

A weight is int8 (N, K), rows filled up with zeros to a multiple of 16 where K is none (`pack`): a tensor core reads 16
bytes at a time. Σ_k w of each row, which the activations' zero point is multiplied with, is computed once, on lowering.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fxquant.kernels.cuda.choice import Question, run_fastest
from fxquant.kernels.cuda.launch_gemm import Epilogue, Operands, launch_gemm, row_class, serves
from fxquant.kernels.cuda.scaled_mm import gemm_by_int_mm
from fxquant.kernels.cuda.triton_support import define_with_triton
from fxquant.kernels.layout import LAYOUTS
from fxquant.kernels.reference import linear as reference
from fxquant.kernels.reference.epilogue import ACTIVATIONS, finish_exactly, requantize

ALIGNMENT = 16
# Features up to which Σ (x − Z)·w is inside int32, |x − Z| ≤ 255 and |w| ≤ 127.
DEEPEST = (2**31 - 1) // (255 * 127)


def pack(weight: Tensor) -> Tensor:
    """Return an int8 weight (N, K) with zeros up to a multiple of 16 behind each row."""
    return functional.pad(weight, (0, -weight.shape[1] % ALIGNMENT)).contiguous()


@LAYOUTS.register("zeros_behind_rows")
def _plain(packed: Tensor, like: Tensor) -> Tensor:
    """Return the weight that `pack` took, of the shape of `like`."""
    return packed[:, : like.shape[1]].clone()


def row_sums(weight: Tensor) -> Tensor:
    """Return Σ_k weight[n, k] as int32 (N,)."""
    return weight.sum(dim=1, dtype=torch.int32)


def int8_gemm(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor | None,
    weight: Tensor,
    weight_scale: Tensor,
    weight_sum: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    out_scale: Tensor | None,
    out_zero_point: Tensor | None,
    out_qmin: int,
    out_qmax: int,
    out_dtype: torch.dtype,
) -> Tensor:
    """Return activation(S_x·S_w·Σ_k (q_x − Z)·q_w + bias) + residual, quantized if `out_scale` is given.

    Args:
        x: (…, K) int8 or uint8.
        x_scale: float32 (), or (…, 1) for each row.
        x_zero_point: int32, as `x_scale`; None for 0, of int8.
        weight: (N, K) int8, or of more columns, which are zeros.
        weight_scale: float32 () or (N,).
        weight_sum: int32 (N,), sums of the rows of the weight; None where the zero point is.
        bias: (N,) float32, or int32 in units of S_x·S_w.
        residual: float, broadcasts to (…, N).
        activation: "none", "relu", "gelu", "gelu_tanh" or "silu".
        out_scale: float32 (), or None for a float result.
        out_zero_point: int32 (), with `out_scale`.
        out_qmin: least integer of the result.
        out_qmax: greatest integer of the result.
        out_dtype: of the result: an integer one with `out_scale`, else float32 or bfloat16.
    """
    zero_point = torch.zeros_like(x_scale, dtype=torch.int32) if x_zero_point is None else x_zero_point
    own = weight[:, : x.shape[-1]]
    tail = (residual, activation, None, None, 0, 0, torch.float32)
    y = reference.linear_int8(x, x_scale, zero_point, own, weight_scale, bias, *tail)
    return requantize(y, out_scale, out_zero_point, out_qmin, out_qmax, out_dtype).to(out_dtype)


def int8_gated_gemm(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor | None,
    weight: Tensor,
    weight_scale: Tensor,
    weight_sum: Tensor | None,
    bias: Tensor | None,
    activation: str,
    out_scale: Tensor | None,
    out_zero_point: Tensor | None,
    out_qmin: int,
    out_qmax: int,
    out_dtype: torch.dtype,
) -> Tensor:
    """Return activation(gate)·up, (…, N), quantized if `out_scale` is given.

    `weight`, `weight_scale`, `weight_sum` and `bias` hold the gate's N rows and behind them the up's; the rest is as in
    `int8_gemm`, which gives both.
    """
    operands = (x, x_scale, x_zero_point, weight, weight_scale, weight_sum, bias)
    gate, up = int8_gemm(*operands, None, "none", None, None, 0, 0, torch.float32).chunk(2, -1)
    y = finish_exactly(gate, activation, None) * up
    return requantize(y, out_scale, out_zero_point, out_qmin, out_qmax, out_dtype).to(out_dtype)


# ── on the device ─────────────────────────────────────────────────────────────────────────────────────────────────


def _triton_gemm(*arguments: Any) -> Tensor:
    operands, epilogue = Operands(*arguments[:8]), Epilogue(*arguments[8:])
    ACTIVATIONS[epilogue.activation]  # raises for an unknown one
    return on_device(operands, epilogue) if serves(operands, epilogue) else int8_gemm(*arguments)


def on_device(operands: Operands, epilogue: Epilogue) -> Tensor:
    """Return what the kernels compute of operands that they serve, by the fastest way."""
    x = operands.x
    sizes = (row_class(x.numel() // x.shape[-1]), operands.weight.shape[0], x.shape[-1])
    given = (operands.x_zero_point is not None, operands.residual is not None)
    kinds = (str(x.dtype), str(epilogue.dtype), epilogue.activation, *map(str, given))
    ways = {
        "triton": lambda: launch_gemm(operands, epilogue),
        "int_mm": lambda: gemm_by_int_mm(operands, epilogue),
    }
    found: Tensor = run_fastest(Question("int8_gemm", (*sizes, *kinds)), x, ways)
    return found


def _triton_gated(*arguments: Any) -> Tensor:
    operands, epilogue = Operands(*arguments[:7]), replace(Epilogue(*arguments[7:]), gated=True)
    ACTIVATIONS[epilogue.activation]
    return launch_gemm(operands, epilogue) if serves(operands, epilogue) else int8_gated_gemm(*arguments)


def _fake_gemm(x: Tensor, x_scale: Tensor, x_zero_point: Tensor | None, weight: Tensor, *rest: Any) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]), dtype=rest[-1])


def _fake_gated(x: Tensor, x_scale: Tensor, x_zero_point: Tensor | None, weight: Tensor, *rest: Any) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0] // 2), dtype=rest[-1])


_X = "Tensor x, Tensor x_scale, Tensor? x_zero_point, "
_WEIGHT = "Tensor weight, Tensor weight_scale, Tensor? weight_sum, Tensor? bias, "
_OUT = "Tensor? out_scale, Tensor? out_zero_point, int out_qmin, int out_qmax, ScalarType out_dtype) -> Tensor"
define_with_triton(
    f"int8_gemm({_X}{_WEIGHT}Tensor? residual, str activation, {_OUT}", int8_gemm, _triton_gemm, _fake_gemm
)
define_with_triton(f"int8_gated_gemm({_X}{_WEIGHT}str activation, {_OUT}", int8_gated_gemm, _triton_gated, _fake_gated)
