"""Linear layers with float activations and weights of 8 or 4 bits in tiles: `fxquant::tiled_linear_weight_only`.

The meaning is that of `fxquant::linear_weight_only`. The reference unpacks the whole weight and multiplies by torch.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fxquant.errors import ConfigError
from fxquant.kernels.cuda.launch_weight_only import Epilogue, Weight, launch, serves
from fxquant.kernels.cuda.tiles import BLOCK, MIDDLES, Tiling, unpack, unpack_parameter
from fxquant.kernels.cuda.triton_support import define_with_triton
from fxquant.kernels.reference.epilogue import ACTIVATIONS, finish
from fxquant.numerics import dequantize
from fxquant.spec import QParams


def tiled_linear_weight_only(
    x: Tensor,
    packed: Tensor,
    weight_scale: Tensor,
    weight_zero_point: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    columns: int,
    group_size: int,
    bits: int,
    dtype: torch.dtype,
    activated: int | None,
) -> Tensor:
    """Return activation(x·(S·(q − Z))ᵀ + bias) + residual, (…, N) as `dtype`, for float x (…, K); N is `columns`.

    Args:
        x: float32, bfloat16 or float16.
        packed: the weight in tiles (tiles.py), of `bits` 8 or 4.
        weight_scale: float32 [⌈N/64⌉, groups, 64].
        weight_zero_point: int8 of that shape, counted from the middle of unsigned codes; None for zeros.
        bias: (N,), or None.
        residual: broadcasts to the result, or None.
        activation: "none", "relu", "gelu", "gelu_tanh" or "silu".
        columns: N.
        group_size: how many values of a row share a scale.
        bits: of a code.
        dtype: of the result.
        activated: so many columns, the first ones, have the activation, and the others none; all where it is None.

    Raises:
        ConfigError: the activation is unknown, or the weight is not packed for x, N and groups.
    """
    cut = Tiling(x.shape[-1], group_size, 8 // bits)
    _check(packed, weight_scale, columns, cut)
    codes = unpack(packed, columns, cut).to(torch.int16) - MIDDLES[cut.parts]
    zero_point = torch.zeros((), dtype=torch.int32, device=x.device)
    if weight_zero_point is not None:
        zero_point = unpack_parameter(weight_zero_point, columns)
    qparams = QParams(unpack_parameter(weight_scale, columns), zero_point, None, group_size)
    y = functional.linear(x.float(), dequantize(codes, qparams), None if bias is None else bias.float())
    if activated is not None:
        y = torch.cat((finish(y[..., :activated], activation, None), y[..., activated:]), dim=-1)
    return finish(y, activation if activated is None else "none", residual).to(dtype)


def _check(packed: Tensor, scale: Tensor, columns: int, cut: Tiling) -> None:
    high = -(-columns // BLOCK)
    wanted = [high, cut.tiles, BLOCK, cut.width], [high, cut.groups, BLOCK]
    found = list(packed.shape), list(scale.shape)
    if found != wanted or packed.dtype is not torch.uint8 or not (packed.is_contiguous() and scale.is_contiguous()):
        raise ConfigError(
            f"a weight of {columns} columns for {cut.depth} features in groups of {cut.group} is packed as uint8 "
            f"{wanted[0]} with scales {wanted[1]}, contiguous; this one is {packed.dtype} {found[0]} with {found[1]}"
        )


# ── on the device ─────────────────────────────────────────────────────────────────────────────────────────────────


def _triton(*arguments: Any) -> Tensor:
    x, packed, scale, zero_point, bias, residual, activation, columns, group_size, bits, dtype, activated = arguments
    ACTIVATIONS[activation]  # raises for an unknown one
    if not serves(x, columns):
        return tiled_linear_weight_only(*arguments)
    cut = Tiling(x.shape[-1], group_size, 8 // bits)
    _check(packed, scale, columns, cut)
    weight = Weight(packed, scale, zero_point, columns, cut)
    return launch(x, weight, Epilogue(bias, residual, activation, activated, dtype))


def _fake(x: Tensor, *rest: Any) -> Tensor:
    *_, columns, _group_size, _bits, dtype, _activated = rest
    return x.new_empty((*x.shape[:-1], columns), dtype=dtype)


define_with_triton(
    "tiled_linear_weight_only(Tensor x, Tensor packed, Tensor weight_scale, Tensor? weight_zero_point, Tensor? bias, "
    "Tensor? residual, str activation, int columns, int group_size, int bits, ScalarType dtype, "
    "int? activated) -> Tensor",
    tiled_linear_weight_only,
    _triton,
    _fake,
)
