"""The kernels of a CPU: our own C++ ones on packed weights, or what a kernel set has where those cannot be had."""

from dataclasses import dataclass

import torch
from torch import fx

from fxquant.graph import edit
from fxquant.kernels.cpu import attention, native, pool, weight_only
from fxquant.kernels.cpu.emit_conv import emit_conv
from fxquant.kernels.cpu.grouped import pack_experts
from fxquant.kernels.cpu.packed import DEEPEST, column_sums, pack
from fxquant.kernels.cpu.plan import run_as_plan
from fxquant.kernels.emit import (
    BYTES,
    LINEARS,
    Form,
    activation_of,
    embedding_emitter,
    emit_static_quantize,
    grouped_emitter,
    integers_of,
    refusal,
    shape_of,
    weight_in_form,
    weight_only_emitter,
    weight_only_refusal,
)
from fxquant.kernels.emit_conv import CONVOLUTIONS
from fxquant.kernels.layout import Source
from fxquant.kernels.reference import grouped, linear
from fxquant.kernels.reference import weight_only as reference_weight_only
from fxquant.kernels.site import Site
from fxquant.kernels.table import PLACES, POOLS, QUANTIZERS, RUNNERS, Emitter, emitter

# Importing these defines the ops.
__all__ = ["CpuKernels", "attention", "grouped", "linear", "pool", "reference_weight_only"]

ops = torch.ops.fxquant

_columns = Form(weight_only.LAYOUT, weight_only.pack, weight_only.pack_parameter, weight_only.layout_arguments)
_reference_weight_only = weight_only_emitter(ops.linear_weight_only.default)
_embedding = embedding_emitter(ops.rows_embedding_int8.default)
_reference_grouped = grouped_emitter(ops.grouped_linear_int8.default, ops.grouped_linear_weight_int8.default)


@dataclass(frozen=True)
class CpuKernels:
    """The kernel set of one kind of processor.

    `linear` and `embedding` emit what stands in for the C++ kernels on plain weights.
    """

    name: str
    linear: Emitter
    embedding: Emitter

    def register(self) -> None:
        """Put the kernels into the table under the set's name."""
        emitter(self.name, "linear_int8", serves=LINEARS, needs=("weight",))(self.emit_linear)
        emitter(self.name, "linear_weight_only", serves=LINEARS, needs=("weight",))(emit_weight_only)
        emitter(self.name, "grouped_linear_int8", serves=("grouped_linear",), needs=("weight",))(emit_grouped)
        emitter(self.name, "conv_int8", serves=CONVOLUTIONS, needs=("x", "weight"))(emit_conv)
        emitter(self.name, "embedding_int8", serves=("embedding",), needs=("weight",))(self.emit_embedding)
        QUANTIZERS[self.name] = emit_quantize
        POOLS[self.name] = ops.max_pool2d_bytes.default
        PLACES[self.name] = ("cpu",)
        RUNNERS[self.name] = run_as_plan

    def emit_linear(self, site: Site) -> fx.Node | str:
        """Emit a linear on a packed weight."""
        x, out = site.read("x"), site.requantize
        wide = out is not None and out.dtype not in BYTES
        if refusal(site) or wide or not native.available():
            return self.linear(site)
        if x.quantized is None or x.spec is None:
            return emit_weight_only(site)
        if shape_of(integers_of(site.read("weight"))[0])[-1] > DEEPEST:
            return self.linear(site)
        tail = (*_packed_weight(site), site.float_value("bias"), site.float_value("residual"), activation_of(site))
        if x.source is not None and x.spec.granularity == "per-token" and site.requantize is None:
            scheme = (x.spec.dtype, x.spec.symmetric, x.spec.range)
            return site.emit(ops.packed_linear_dynamic_int8.default, x.source, *tail, *scheme)
        quantized = (x.quantized, x.scale, x.zero_point)
        return site.emit(ops.packed_linear_int8.default, *quantized, *tail, *site.output_arguments())

    def emit_embedding(self, site: Site) -> fx.Node | str:
        """Emit a look-up of int8 rows."""
        return _embedding(site) if native.available() else self.embedding(site)


def emit_weight_only(site: Site) -> fx.Node | str:
    """Emit a linear of float activations on a packed weight of 8 or 4 bits."""
    refused = weight_only_refusal(site)
    if refused is not None or not native.available():
        return refused or _reference_weight_only(site)
    weight = site.read("weight")
    assert weight.quantized is not None and weight.spec is not None, "a claimed weight is quantized"
    n, k = shape_of(weight.quantized)
    tail = (site.float_value("bias"), site.float_value("residual"), activation_of(site))
    values = (site.read("x").value, *weight_in_form(site, _columns), *tail)
    return site.emit(ops.packed_linear_weight_only.default, *values, n, weight_only.group_size(weight.spec, k), None)


def emit_grouped(site: Site) -> fx.Node | str:
    """Emit the linears of experts on packed weights, where their rows are quantized per token at run time."""
    x, (weight, scale), offsets = site.read("x"), integers_of(site.read("weight")), site.read("offsets").value
    known = edit.info(offsets)
    by_token = x.source is not None and x.spec is not None and x.spec.granularity == "per-token"
    if refusal(site) or not by_token or known is None or not native.available():
        return _reference_grouped(site)
    integers = edit.get_tensor(site.gm, weight)
    if integers.shape[-1] > DEEPEST:
        return _reference_grouped(site)
    name = str(weight.target)
    packed = site.constant(f"{name}_packed", lambda: pack_experts(integers, known.shape[0]))
    sums = site.constant(f"{name}_sum", lambda: column_sums(integers))
    assert x.spec is not None
    scheme = (x.spec.dtype, x.spec.symmetric, x.spec.range)
    target = ops.packed_grouped_linear_dynamic_int8.default
    return site.emit(target, x.source, packed, scale, sums, offsets, *scheme)


def emit_quantize(site: Site) -> fx.Node | str:
    """Emit a static per-tensor quantize that no kernel took over."""
    return emit_static_quantize(site) if native.available() else "torch's own ops quantize"


def _packed_weight(site: Site) -> tuple[fx.Node, fx.Node, fx.Node]:
    """Return nodes of the packed weight, its scale and its column sums; a tied weight is packed once."""
    node, scale = integers_of(site.read("weight"))
    integers, name = edit.get_tensor(site.gm, node), str(node.target)
    packed = site.constant(f"{name}_packed", lambda: pack(integers), Source(name, "packed"))
    return packed, scale, site.constant(f"{name}_sum", lambda: column_sums(integers))
