"""How torch's ONNX exporter writes the `fxquant::` ops; imported only where `onnxscript` is installed."""

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch
from onnxscript import opset21 as op

_TYPES = {"int4": ir.DataType.INT4, "uint4": ir.DataType.UINT4, "int8": ir.DataType.INT8, "uint8": ir.DataType.UINT8}


def quantize(x: Any, scale: Any, zero_point: Any, axis: int | None, qmin: int, qmax: int, dtype: int) -> Any:
    """Write QuantizeLinear; the passes before have made the bounds those of the type."""
    return (
        op.QuantizeLinear(x, scale, zero_point) if axis is None else op.QuantizeLinear(x, scale, zero_point, axis=axis)
    )


def dequantize(q: Any, scale: Any, zero_point: Any, axis: int | None) -> Any:
    """Write DequantizeLinear."""
    return (
        op.DequantizeLinear(q, scale, zero_point)
        if axis is None
        else op.DequantizeLinear(q, scale, zero_point, axis=axis)
    )


def dequantize_blocks(q: Any, scale: Any, zero_point: Any, axis: int, block_size: int, dtype: str) -> Any:
    """Write DequantizeLinear with a block size; the cast of the constant is folded when the file is written."""
    q, zero_point = (op.Cast(each, to=_TYPES[dtype]) for each in (q, zero_point))
    return op.DequantizeLinear(q, scale, zero_point, axis=axis, block_size=block_size)


def dynamic_quantize(x: Any) -> Any:
    """Write DynamicQuantizeLinear."""
    return op.DynamicQuantizeLinear(x)


def table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return the translation of each op that a dialect graph may call."""
    functions = (quantize, dequantize, dequantize_blocks, dynamic_quantize)
    return {getattr(torch.ops.fxquant, each.__name__).default: each for each in functions}
