"""What ONNX Runtime runs in low precision, in a graph that transformers' exporter converts to ONNX.

The exporter's tables do not know the operators of the ONNX dialect. torch can call operators of ONNX by name, and
every exporter hands them on.
"""

from typing import Any

import torch
from torch import Tensor, fx

from fxquant.graph import edit
from fxquant.integrations.onnx.dynamic import PerTensorDynamic
from fxquant.integrations.onnx.merge import MergeProducts
from fxquant.integrations.onnx.ops import DEQUANTIZE_BLOCKS, DYNAMIC_QUANTIZE
from fxquant.integrations.onnx.weights import LinearsToProducts
from fxquant.passes.qdq_nodes import DEQUANTIZE

PASSES = (PerTensorDynamic(), MergeProducts(), LinearsToProducts())
_TYPES = {"uint8": 2, "int8": 3, "uint4": 21, "int4": 22}  # onnx.TensorProto.DataType
_BLOCKS = 21  # the opset that gave DequantizeLinear blocks


def call_by_name(gm: fx.GraphModule) -> None:
    """Let what ONNX alone has operators for be calls of them, once an exporter traces the graph; in place."""
    for node in gm.graph.nodes:
        if node.target is DEQUANTIZE and not edit.is_constant(node.args[1]):
            node.target = _dequantize
        node.target = _CALLS.get(node.target, node.target)
    gm.recompile()


def _dynamic_quantize(x: Tensor) -> Any:
    types = (torch.uint8, torch.float32, torch.uint8)
    return torch.onnx.ops.symbolic_multi_out("DynamicQuantizeLinear", (x,), dtypes=types, shapes=(x.shape, (), ()))


def _dequantize(q: Tensor, scale: Tensor, zero_point: Tensor, axis: None) -> Tensor:
    return torch.onnx.ops.symbolic("DequantizeLinear", (q, scale, zero_point), dtype=torch.float32, shape=q.shape)


def _dequantize_blocks(q: Tensor, scale: Tensor, zero_point: Tensor, axis: int, block_size: int, dtype: str) -> Tensor:
    kind = _TYPES[dtype]
    parts = [
        torch.onnx.ops.symbolic("Cast", (each,), {"to": kind}, dtype=kind, shape=each.shape) for each in (q, zero_point)
    ]
    return torch.onnx.ops.symbolic(
        "DequantizeLinear",
        (parts[0], scale, parts[1]),
        {"axis": axis, "block_size": block_size},
        dtype=torch.float32,
        shape=q.shape,
        version=_BLOCKS,
    )


_CALLS: dict[Any, Any] = {DYNAMIC_QUANTIZE: _dynamic_quantize, DEQUANTIZE_BLOCKS: _dequantize_blocks}
