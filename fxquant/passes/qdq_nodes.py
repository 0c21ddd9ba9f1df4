"""Builders of the Q/DQ nodes that `convert` puts on edges."""

import operator

import torch
from torch import Tensor, fx

import fxquant.kernels.qdq  # registers the ops this module emits
from fxquant.graph import edit
from fxquant.graph.edit import TensorInfo
from fxquant.kernels.int4 import pack_int4
from fxquant.spec import AT_RUN_TIME, QParams, QuantSpec

assert fxquant.kernels.qdq
QUANTIZE = torch.ops.fxquant.quantize.default
DEQUANTIZE = torch.ops.fxquant.dequantize.default
DEQUANTIZE_GROUPS = torch.ops.fxquant.dequantize_groups.default
UNPACK_INT4 = torch.ops.fxquant.unpack_int4.default
CHOOSE_QPARAMS = torch.ops.fxquant.choose_qparams.default


def store_qparams(gm: fx.GraphModule, wanted: str, qparams: QParams, before: fx.Node) -> tuple[fx.Node, fx.Node]:
    """Store scale and zero point as constants named after `wanted`; return their nodes."""
    scale = edit.add_constant(gm, f"{wanted}_scale", qparams.scale, before)
    return scale, edit.add_constant(gm, f"{wanted}_zero_point", qparams.zero_point, before)


def store_integers(gm: fx.GraphModule, wanted: str, integers: Tensor, spec: QuantSpec, before: fx.Node) -> fx.Node:
    """Store the integers of a constant, 4-bit ones two to a byte; return the node that has one in each element."""
    if not spec.format.packed or integers.ndim == 0:
        # Elementwise arithmetic keeps the order of a transposed weight in memory; kernels read rows.
        return edit.add_constant(gm, wanted, integers.contiguous(), before)
    packed = edit.add_constant(gm, wanted, pack_int4(integers), before)
    with gm.graph.inserting_before(before):
        args = (packed, integers.shape[-1], spec.format.signed)
        return edit.call(gm.graph, UNPACK_INT4, args, like=packed, value=edit.describe(integers))


def insert_quantize(
    source: fx.Node, scale: fx.Node, zero_point: fx.Node, spec: QuantSpec, axis: int | None, after: fx.Node
) -> fx.Node:
    """Insert quantize and dequantize of `source` behind `after`; return the dequantize node."""
    known = edit.info(source)
    value = TensorInfo(spec.format.torch_dtype, known.shape, known.dynamic) if known else None
    args = (source, scale, zero_point, axis, spec.qmin, spec.qmax, spec.format.torch_dtype)
    with source.graph.inserting_after(after):
        q = edit.call(source.graph, QUANTIZE, args, like=source, value=value)
    edit.mark(q, spec=spec.to_dict())
    return insert_dequantize(q, scale, zero_point, spec, axis, q)


def insert_dequantize(
    q: fx.Node, scale: fx.Node, zero_point: fx.Node, spec: QuantSpec, axis: int | None, after: fx.Node
) -> fx.Node:
    """Insert a dequantize of the integers `q` behind `after` and return it."""
    known = edit.info(q)
    value = TensorInfo(torch.float32, known.shape, known.dynamic) if known else None
    target, scheme = (DEQUANTIZE, axis) if spec.group_size is None else (DEQUANTIZE_GROUPS, spec.group_size)
    with q.graph.inserting_after(after):
        node = edit.call(q.graph, target, (q, scale, zero_point, scheme), like=q, value=value)
    edit.mark(node, spec=spec.to_dict())
    return node


def insert_dynamic(source: fx.Node, spec: QuantSpec) -> fx.Node:
    """Insert choose_qparams, quantize and dequantize of `source` behind it; return the dequantize node."""
    scale, zero_point = insert_choice(source, spec, source.next)
    return insert_quantize(source, scale, zero_point, spec, spec.axis, zero_point)


def insert_choice(source: fx.Node, spec: QuantSpec, before: fx.Node) -> tuple[fx.Node, fx.Node]:
    """Insert choose_qparams of `source` before a node; return the nodes of the scale and of the zero point."""
    known = edit.info(source)
    shape, dynamic = _scales(known, spec.granularity)
    args = (source, spec.dtype, spec.granularity, spec.axis, spec.symmetric, spec.range)
    with source.graph.inserting_before(before):
        both = edit.call(source.graph, CHOOSE_QPARAMS, args, like=source)
        scale, zero_point = (
            edit.call(
                source.graph, operator.getitem, (both, place), like=source, value=TensorInfo(dtype, shape, dynamic)
            )
            for place, dtype in enumerate((torch.float32, torch.int32))
        )
    return scale, zero_point


def _scales(known: TensorInfo | None, granularity: str) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Return the shape of scales found at run time, and which of its sizes vary."""
    if known is None or granularity not in AT_RUN_TIME:
        return (), ()
    if granularity == "per-token":
        return (*known.shape[:-1], 1), (*known.dynamic[:-1], False)
    rest = len(known.shape) - 1
    return (*known.shape[:1], *[1] * rest), (*known.dynamic[:1], *[False] * rest)
