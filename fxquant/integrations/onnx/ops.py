"""What ONNX has as one operator, as ops of the Q/DQ graph, so that a dialect graph still runs: it is the reference.

dequantize_blocks   DequantizeLinear of integers of few bits, or with a scale for each block of values along any axis
dynamic_quantize    DynamicQuantizeLinear
"""

from typing import Any

import torch
from torch import Tensor

from fxquant.kernels.library import define
from fxquant.numerics import choose_qparams, dequantize, quantize
from fxquant.spec import QParams, QuantSpec
from fxquant.verification.rounding import STOCHASTIC, shifted

SPEC = QuantSpec(dtype="uint8", granularity="per-tensor", dynamic=True)  # of DynamicQuantizeLinear


def dequantize_blocks(q: Tensor, scale: Tensor, zero_point: Tensor, axis: int, block_size: int, dtype: str) -> Tensor:
    """Return scale·(q − zero_point) as float32, one scale for each `block_size` values along `axis`.

    `dtype` names the integers ("uint4"), which torch stores one to a byte. Shapes: q (…, K, …), scale and zero_point
    (…, ⌈K/block_size⌉, …); the zero point may be (). A block size of 0 is that of ONNX: a scale for each index of
    `axis`, (K,), or one for all, ().
    """
    if not block_size:
        return dequantize(q, QParams(scale, zero_point, axis if scale.ndim else None))
    scale, zero_point = (each.movedim(axis, -1) if each.ndim else each for each in (scale, zero_point))
    return dequantize(q.movedim(axis, -1), QParams(scale, zero_point, None, block_size)).movedim(-1, axis)


def _fake(q: Tensor, scale: Tensor, zero_point: Tensor, axis: int, block_size: int, dtype: str) -> Tensor:
    return q.new_empty(q.shape, dtype=torch.float32)


define(
    "dequantize_blocks(Tensor q, Tensor scale, Tensor zero_point, int axis, int block_size, str dtype) -> Tensor",
    dequantize_blocks,
    _fake,
)
DEQUANTIZE_BLOCKS = torch.ops.fxquant.dequantize_blocks.default


def dynamic_quantize(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return `x` as uint8 with its scale and its zero point (uint8), both (), from its own minimum and maximum."""
    qparams = choose_qparams(x, SPEC)
    return quantize(x, qparams, SPEC), qparams.scale, qparams.zero_point.to(torch.uint8)


def _fake_dynamic_quantize(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    scale, zero_point = x.new_empty((), dtype=torch.float32), x.new_empty((), dtype=torch.uint8)
    return x.new_empty(x.shape, dtype=torch.uint8), scale, zero_point


define("dynamic_quantize(Tensor x) -> (Tensor, Tensor, Tensor)", dynamic_quantize, _fake_dynamic_quantize)
DYNAMIC_QUANTIZE = torch.ops.fxquant.dynamic_quantize.default


def _by_chance(args: tuple[Any, ...], generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    (x,) = args
    qparams = choose_qparams(x, SPEC)
    q = quantize(shifted(x, qparams.scale, generator), qparams, SPEC)
    return q, qparams.scale, qparams.zero_point.to(torch.uint8)


STOCHASTIC[DYNAMIC_QUANTIZE] = _by_chance
