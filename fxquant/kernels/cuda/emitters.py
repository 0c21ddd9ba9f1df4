"""The cuda kernel set: 8-bit products in Triton, fed by rows that one kernel quantizes for all that read them."""

import operator

import torch
from torch import Tensor, fx

from fxquant.graph import edit
from fxquant.kernels.cpu import packed, pool
from fxquant.kernels.cuda import attention, devices, fp8, gemm, rows
from fxquant.kernels.cuda.emit_conv import emit_conv
from fxquant.kernels.cuda.emit_weight_only import emit_weight_only
from fxquant.kernels.cuda.triton_support import float8_refusal
from fxquant.kernels.cuda.triton_support import refusal as device_refusal
from fxquant.kernels.emit import (
    BYTES,
    LINEARS,
    UNQUANTIZED,
    activation_of,
    bias_of,
    embedding_emitter,
    emit_static_quantize,
    fp8_refusal,
    grouped_emitter,
    integers_of,
    linear_emitter,
    refusal,
    result_dtype,
)
from fxquant.kernels.emit_conv import CONVOLUTIONS
from fxquant.kernels.layout import Source, record
from fxquant.kernels.reference import embedding, grouped, linear, weight_only
from fxquant.kernels.site import Operand, Site
from fxquant.kernels.table import FUSES, PLACES, POOLS, QUANTIZERS, emitter

__all__ = [
    "attention",
    "devices",
    "embedding",
    "fp8",
    "gemm",
    "grouped",
    "linear",
    "packed",
    "pool",
    "rows",
    "weight_only",
]  # importing them defines the ops and registers the devices

ops = torch.ops.fxquant

_reference_linear = linear_emitter(ops.linear_int8.default, ops.linear_weight_int8.default)


@emitter("cuda", "linear_int8", serves=LINEARS, needs=("weight",))
def emit_linear(site: Site) -> fx.Node | str:
    """Emit an 8-bit product on integer rows, which are quantized before it where that is done at run time."""
    x, out = site.read("x"), site.requantize
    integers = edit.get_tensor(site.gm, integers_of(site.read("weight"))[0])
    refused = refusal(site) or device_refusal(integers.device)
    if refused:
        return refused
    if x.quantized is None or x.spec is None:
        return UNQUANTIZED if out is not None else emit_weight_only(site)
    if (out is not None and out.dtype not in BYTES) or integers.shape[1] > gemm.DEEPEST:
        return _reference_linear(site)
    quantized = _rows_of(site, x) if _by_row(x) else (x.quantized, x.scale, x.zero_point)
    q, scale, zero_point = quantized
    weight = (_packed_weight(site, integers), site.read("weight").scale)
    if x.spec.symmetric and x.spec.format.signed:
        zero_point, sums = None, None  # a zero point of zero
    else:
        sums = _weight_sums(site, integers)
    tail = (bias_of(site), site.float_value("residual"), activation_of(site), *site.output_arguments())
    return site.emit(ops.int8_gemm.default, q, scale, zero_point, *weight, sums, *tail)


@emitter("cuda", "linear_fp8", serves=LINEARS, needs=("x", "weight"))
def emit_fp8(site: Site) -> fx.Node | str:
    """Emit a float8 product on rows that are quantized before it."""
    weight = integers_of(site.read("weight"))
    device = edit.get_tensor(site.gm, weight[0]).device
    refused = fp8_refusal(site) or device_refusal(device) or float8_refusal(device)
    if refused:
        return refused
    x = site.read("x")
    q, scale, _ = _rows_of(site, x) if _by_row(x) else (x.quantized, x.scale, x.zero_point)
    tail = (bias_of(site), site.float_value("residual"), activation_of(site), result_dtype(site))
    return site.emit(ops.fp8_gemm.default, q, scale, *weight, *tail)


emitter("cuda", "linear_weight_only", serves=LINEARS, needs=("weight",))(emit_weight_only)
emitter("cuda", "grouped_linear_int8", serves=("grouped_linear",), needs=("weight",))(
    grouped_emitter(ops.grouped_linear_int8.default, ops.grouped_linear_weight_int8.default)
)
emitter("cuda", "conv_int8", serves=CONVOLUTIONS, needs=("x", "weight"))(emit_conv)
emitter("cuda", "embedding_int8", serves=("embedding",), needs=("weight",))(
    embedding_emitter(ops.embedding_int8.default)
)


QUANTIZERS["cuda"] = emit_static_quantize
POOLS["cuda"] = ops.max_pool2d.default
FUSES["cuda"] = lambda: True
PLACES["cuda"] = ("cuda", "cpu")  # on a CPU as references


def _by_row(x: Operand) -> bool:
    return x.source is not None and x.spec is not None and x.spec.granularity == "per-token"


def _rows_of(site: Site, x: Operand) -> tuple[fx.Node, fx.Node, fx.Node]:
    """Return the integers, scales and zero points of x, which one kernel computes for all that read them."""
    assert x.source is not None and x.spec is not None, "rows are quantized at run time"
    scheme = (x.spec.dtype, x.spec.symmetric, x.spec.range)
    wanted = (x.source, *scheme)
    for found in x.source.users:
        if found.target is ops.quantize_rows.default and found.args == wanted:
            parts = sorted(found.users, key=lambda part: part.args[1])  # type: ignore[arg-type,return-value]
            _before(site, found, *parts)
            return tuple(parts)  # type: ignore[return-value]
    with site.gm.graph.inserting_before(site.anchor):
        made = edit.call(site.gm.graph, ops.quantize_rows.default, wanted, like=x.quantized or x.source)
        read = (x.quantized, x.scale, x.zero_point)
        q, scale, zero_point = (_item(made, index, part) for index, part in enumerate(read))
    return q, scale, zero_point


def _item(made: fx.Node, index: int, like: fx.Node | None) -> fx.Node:
    assert like is not None, "a quantized operand has a scale and a zero point"
    item = edit.call(made.graph, operator.getitem, (made, index), like=like, value=edit.info(like))
    item.meta |= {key: value for key, value in like.meta.items() if key == "val"}
    edit.mark(item, spec=edit.marks(like).get("spec"))
    return item


def _before(site: Site, *nodes: fx.Node) -> None:
    """Let nodes stand before the site: sites come by their first node, and a fused one asked at its last."""
    if not all(node < site.anchor for node in nodes):
        for node in nodes:
            site.anchor.prepend(node)


def _packed_weight(site: Site, integers: Tensor) -> fx.Node:
    """Return the node of a weight whose rows a kernel can read; a tied weight is packed once."""
    node, _ = integers_of(site.read("weight"))
    source = Source(str(node.target), "zeros_behind_rows")
    if integers.shape[1] % gemm.ALIGNMENT == 0 and integers.is_contiguous():
        record(site.gm, node, source)  # where it is joined with others, the plain one need not be kept beside them
        return node
    return site.constant(f"{node.target}_packed", lambda: gemm.pack(integers), source)


def _weight_sums(site: Site, integers: Tensor) -> fx.Node:
    node, _ = integers_of(site.read("weight"))
    return site.constant(f"{node.target}_sum", lambda: gemm.row_sums(integers))
