"""What ONNX Runtime runs in low precision, in a graph that transformers' exporter converts to ONNX.

The exporter's tables do not know the operators of the ONNX dialect. torch can call operators of ONNX by name, and
every exporter hands them on.
"""

from typing import Any

import torch
from torch import Tensor, fx

from fxquant.graph import edit
from fxquant.integrations.onnx import ops
from fxquant.integrations.onnx.dynamic import PerTensorDynamic
from fxquant.integrations.onnx.merge import MergeProducts
from fxquant.integrations.onnx.ops import DEQUANTIZE_BLOCKS, DYNAMIC_QUANTIZE
from fxquant.integrations.onnx.weights import LinearsToProducts
from fxquant.kernels.int4 import pack_int4
from fxquant.passes.qdq_nodes import DEQUANTIZE

PASSES = (PerTensorDynamic(), MergeProducts(), LinearsToProducts())
_PRODUCT = torch.ops.aten.matmul.default
_LEAST = 16  # values in a block of MatMulNBits, or a power of two above


def call_by_name(gm: fx.GraphModule) -> None:
    """Let what ONNX alone has operators for be calls of them, once an exporter traces the graph; in place.

    Blocks of 4 bits become MatMulNBits of ONNX Runtime: ONNX itself has them from an opset on that exporters do not
    write unless they are told to.
    """
    for node in list(gm.graph.nodes):
        if node.target is DEQUANTIZE and not edit.is_constant(node.args[1]):
            node.target = _dequantize
        elif node.target is DYNAMIC_QUANTIZE:
            node.target = _dynamic_quantize
        elif node.target is _PRODUCT and node.args[1].target is DEQUANTIZE_BLOCKS:
            _multiply_bits(gm, node)
    for node in gm.graph.find_nodes(op="call_function", target=DEQUANTIZE_BLOCKS):
        node.target = ops.dequantize_blocks
    edit.sweep(gm)
    gm.recompile()


def _multiply_bits(gm: fx.GraphModule, product: fx.Node) -> None:
    """Replace x·W, W [K, N] of 4 bits in blocks along K, where the runtime has its blocks."""
    weight: Any = product.args[1]
    q, scale, zero_point, axis, size, dtype = weight.args
    integers, scales, zeros = (edit.get_tensor(gm, each) for each in (q, scale, zero_point))
    k, n = integers.shape
    if axis != 0 or size < _LEAST or size & (size - 1) or k % size or dtype not in _MIDDLE:
        return
    parts = {
        "bits": _codes(integers.t(), _MIDDLE[dtype]).reshape(n, -1, size // 2),
        "scales": scales.t().flatten(),
        "zeros": _codes(zeros.expand(scales.shape).t(), _MIDDLE[dtype]).flatten(),
    }
    constants = [edit.add_constant(gm, f"{q.target}_{part}", value, product) for part, value in parts.items()]
    with gm.graph.inserting_before(product):
        args = (product.args[0], *constants, k, n, size)
        edit.replace(product, edit.call(gm.graph, _matmul_bits, args, like=product, value=edit.info(product)))


_MIDDLE = {"int4": 8, "uint4": 0}  # what makes integers those of MatMulNBits, which are unsigned


def _codes(integers: Tensor, middle: int) -> Tensor:
    """Return integers (rows, n) as MatMulNBits has them, two to a byte: (rows, ⌈n/2⌉)."""
    return pack_int4((integers.to(torch.int16) + middle).to(torch.uint8))


def _matmul_bits(x: Tensor, bits: Tensor, scales: Tensor, zeros: Tensor, k: int, n: int, size: int) -> Tensor:
    return torch.onnx.ops.symbolic(
        "com.microsoft::MatMulNBits",
        (x, bits, scales, zeros),
        {"K": k, "N": n, "bits": 4, "block_size": size},
        dtype=torch.float32,
        shape=(*x.shape[:-1], n),
        version=1,
    )


def _dynamic_quantize(x: Tensor) -> Any:
    types = (torch.uint8, torch.float32, torch.uint8)
    return torch.onnx.ops.symbolic_multi_out("DynamicQuantizeLinear", (x,), dtypes=types, shapes=(x.shape, (), ()))


def _dequantize(q: Tensor, scale: Tensor, zero_point: Tensor, axis: None) -> Tensor:
    return torch.onnx.ops.symbolic("DequantizeLinear", (q, scale, zero_point), dtype=torch.float32, shape=q.shape)
