"""The implicit form of quantization: a float model, and a table with the scale of each tensor beside it.

A runtime that quantizes by itself (TensorRT's implicit mode) reads its ranges from such a table instead of calibrating.
Imported only where `onnx_ir` is installed.
"""

import struct
from typing import Any

import numpy as np
import onnx_ir as ir

from fxquant.errors import ExportError
from fxquant.spec import FORMATS

_HEADER = "TRT-100000-EntropyCalibration2"  # the version of TensorRT does not enter how the table is read
_MOVES = {"Concat", "Expand", "Gather", "Identity", "MaxPool", "Reshape", "Slice", "Split", "Squeeze", "Tile"}
_MOVES |= {"Transpose", "Unsqueeze"}
_BITS = {"UINT8": FORMATS["uint8"], "INT8": FORMATS["int8"]}


def strip(graph: Any) -> dict[str, float]:
    """Take Q/DQ out of an ONNX graph, and return the symmetric int8 scale of each tensor that was quantized.

    Weights become float32 as they were dequantized. A scale is that of [−127, 127] for the range that the tensor had.
    """
    table: dict[str, float] = {}
    for node in list(graph):
        if node.op_type == "QuantizeLinear":
            source, scale, zero_point = node.inputs
            table[source.name] = _symmetric(scale, zero_point)
            _set_float(node)
            _bypass(graph, node, source)
    for node in list(graph):
        if node.op_type == "DequantizeLinear" and node.inputs[0].is_initializer():
            _fold(graph, node)
        elif node.op_type == "DequantizeLinear":
            _bypass(graph, node, node.inputs[0])
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
    return table


def cache(table: dict[str, float]) -> str:
    """Return a table in the form of TensorRT's calibration cache: a name and the bits of a float32 in each line."""
    lines = [f"{name}: {struct.pack('>f', scale).hex()}" for name, scale in table.items()]
    return "\n".join([_HEADER, *lines]) + "\n"


def _symmetric(scale: Any, zero_point: Any) -> float:
    step, zero = float(scale.const_value.numpy()), int(zero_point.const_value.numpy())
    whole = _BITS[zero_point.const_value.dtype.name]
    return step * max(zero - whole.minimum, whole.maximum - zero) / 127


def _set_float(node: Any) -> None:
    """Let what moves the integers of a quantize, up to their dequantize, move floats."""
    for user in [user for output in node.outputs for user in output.consumers()]:
        if user.op_type == "DequantizeLinear":
            continue
        if user.op_type not in _MOVES:
            raise ExportError(f"{user.name} ({user.op_type}) computes on integers, which a float model has none of")
        for output in user.outputs:
            output.type = ir.TensorType(ir.DataType.FLOAT)
        _set_float(user)


def _bypass(graph: Any, node: Any, source: Any) -> None:
    node.outputs[0].replace_all_uses_with(source, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _fold(graph: Any, node: Any) -> None:
    """Replace a dequantize of a constant by its value."""
    q, scale = (value.const_value.numpy().astype(np.float32) for value in node.inputs[:2])
    if scale.ndim:
        shape = [1] * q.ndim
        shape[node.attributes["axis"].as_int()] = -1
        scale = scale.reshape(shape)
    output = node.outputs[0]
    folded = ir.Value(
        name=f"{node.inputs[0].name}_float",
        type=ir.TensorType(ir.DataType.FLOAT),
        shape=ir.Shape(q.shape),
        const_value=ir.Tensor(q * scale),
    )
    output.replace_all_uses_with(folded)
    graph.remove(node, safe=True)
    graph.register_initializer(folded)
