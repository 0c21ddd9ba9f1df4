"""The kernels of a CPU: our own C++ ones on packed weights, or what a kernel set has where those cannot be had."""

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from fxquant.graph import edit
from fxquant.kernels.cpu import attention, native, pool, weight_only
from fxquant.kernels.cpu.emit_conv import emit_conv
from fxquant.kernels.cpu.grouped import pack_experts
from fxquant.kernels.cpu.packed import DEEPEST, column_sums, pack
from fxquant.kernels.emit import (
    CONVOLUTIONS,
    LINEARS,
    activation_of,
    embedding_emitter,
    grouped_emitter,
    refusal,
    stored,
    weight_only_emitter,
    weight_only_refusal,
)
from fxquant.kernels.int4 import unpack_int4
from fxquant.kernels.layout import Source
from fxquant.kernels.reference import grouped, linear
from fxquant.kernels.reference import weight_only as reference_weight_only
from fxquant.kernels.site import Operand, Site
from fxquant.kernels.table import DEVICES, POOLS, QUANTIZERS, Emitter, emitter

# Importing these defines the ops.
__all__ = ["CpuKernels", "attention", "grouped", "linear", "pool", "reference_weight_only"]

ops = torch.ops.fxquant
BYTES = (torch.int8, torch.uint8)

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
        DEVICES[self.name] = ("cpu",)

    def emit_linear(self, site: Site) -> fx.Node | str:
        """Emit a linear on a packed weight."""
        x, out = site.read("x"), site.requantize
        wide = out is not None and out.dtype not in BYTES
        if refusal(site) or wide or not native.available():
            return self.linear(site)
        if x.quantized is None or x.spec is None:
            return emit_weight_only(site)
        if _shape(_integers(site.read("weight")))[-1] > DEEPEST:
            return self.linear(site)
        weight = _packed_weight(site, site.read("weight"))
        tail = (*weight, site.float_value("bias"), site.float_value("residual"), activation_of(site))
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
    n, k = _shape(weight.quantized)
    tail = (site.float_value("bias"), site.float_value("residual"), activation_of(site))
    values = (site.read("x").value, *_weight_in_columns(site, weight), *tail)
    return site.emit(ops.packed_linear_weight_only.default, *values, n, weight_only.group_size(weight.spec, k), None)


def emit_grouped(site: Site) -> fx.Node | str:
    """Emit the linears of experts on packed weights, where their rows are quantized per token at run time."""
    x, weight, offsets = site.read("x"), site.read("weight"), site.read("offsets").value
    known = edit.info(offsets)
    by_token = x.source is not None and x.spec is not None and x.spec.granularity == "per-token"
    if refusal(site) or not by_token or known is None or not native.available():
        return _reference_grouped(site)
    integers = edit.get_tensor(site.gm, _integers(weight))
    if integers.shape[-1] > DEEPEST:
        return _reference_grouped(site)
    name = str(_integers(weight).target)
    packed = site.constant(f"{name}_packed", lambda: pack_experts(integers, known.shape[0]))
    sums = site.constant(f"{name}_sum", lambda: column_sums(integers))
    assert x.spec is not None
    scheme = (x.spec.dtype, x.spec.symmetric, x.spec.range)
    target = ops.packed_grouped_linear_dynamic_int8.default
    return site.emit(target, x.source, packed, weight.scale, sums, offsets, *scheme)


def emit_quantize(site: Site) -> fx.Node | str:
    """Emit a static per-tensor quantize that no kernel took over."""
    out = site.requantize
    if out is None or out.dtype not in BYTES or not native.available():
        return "torch's own ops quantize"
    source = site.read("x").value
    return site.emit(ops.quantize_static.default, source, out.scale, out.zero_point, out.qmin, out.qmax, out.dtype)


def _integers(weight: Operand) -> fx.Node:
    assert weight.quantized is not None, "a claimed weight is quantized"
    return weight.quantized


def _packed_weight(site: Site, weight: Operand) -> tuple[fx.Node, fx.Node, fx.Node]:
    """Return nodes of the packed weight, its scale and its column sums; a tied weight is packed once."""
    assert weight.scale is not None, "a claimed weight is quantized"
    integers = edit.get_tensor(site.gm, _integers(weight))
    name = str(_integers(weight).target)
    packed = site.constant(f"{name}_packed", lambda: pack(integers), Source(name, "packed"))
    return packed, weight.scale, site.constant(f"{name}_sum", lambda: column_sums(integers))


def _weight_in_columns(site: Site, weight: Operand) -> tuple[fx.Node, fx.Node, fx.Node | None]:
    """Return nodes of a weight, its scale and its zero point as the weight-only kernel reads them."""
    node, spec, scale, zero_point = weight.quantized, weight.spec, weight.scale, weight.zero_point
    assert node is not None and spec is not None and scale is not None and zero_point is not None
    name, shape = f"{stored(node).target}_columns", _shape(node)

    def of_groups(parameter: fx.Node) -> Tensor:
        return weight_only.pack_parameter(edit.get_tensor(site.gm, parameter), shape, spec)

    source = Source(str(stored(node).target), "columns", weight_only.layout_arguments(spec, shape))
    packed = site.constant(name, lambda: weight_only.pack(_values(site.gm, node), spec), source)
    scales = site.constant(f"{name}_scale", lambda: of_groups(scale))
    zeros = None if spec.symmetric else site.constant(f"{name}_zero_point", lambda: of_groups(zero_point))
    return packed, scales, zeros


def _values(gm: fx.GraphModule, node: fx.Node) -> Tensor:
    """Return the integers of a weight, one an element."""
    tensor = edit.get_tensor(gm, stored(node))
    return tensor if edit.is_constant(node) else unpack_int4(tensor, *node.args[1:])  # type: ignore[arg-type]


def _shape(node: fx.Node) -> tuple[int, ...]:
    known = edit.info(node)
    assert known is not None, "constants are described"
    return known.shape
