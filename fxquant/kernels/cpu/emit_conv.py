"""Convolutions on a CPU: the C++ kernels on packed weights, or the reference where those cannot be had."""

from math import prod

import torch
from torch import fx

from fxquant.graph import edit
from fxquant.kernels.cpu import native
from fxquant.kernels.cpu.packed import DEEPEST, column_sums
from fxquant.kernels.cpu.packed_conv import pack_filters
from fxquant.kernels.emit import BYTES, activation_of, integers_of
from fxquant.kernels.emit_conv import conv_emitter, conv_refusal, geometry
from fxquant.kernels.layout import Source
from fxquant.kernels.reference import conv
from fxquant.kernels.site import Site

__all__ = ["conv", "emit_conv"]  # importing it defines the op

ops = torch.ops.fxquant
_reference = conv_emitter(ops.conv_int8.default)


def emit_conv(site: Site) -> fx.Node | str:
    """Emit a convolution on a packed weight."""
    x, out = site.read("x"), site.requantize
    wide = out is not None and out.dtype not in BYTES
    if conv_refusal(site) or wide or not native.available():
        return _reference(site)
    node, scale = integers_of(site.read("weight"))
    weight = edit.get_tensor(site.gm, node)
    bias = site.operands.get("bias")
    if prod(weight.shape[1:]) > DEEPEST or (bias is not None and bias.quantized is not None):
        return _reference(site)
    stride, padding, dilation, groups = geometry(site)
    name = f"{node.target}_{groups}"  # a weight that is read in other groups is packed anew
    source = Source(str(node.target), "packed_filters", (groups,))
    packed = site.constant(f"{name}_packed", lambda: pack_filters(weight, groups), source)
    sums = site.constant(f"{node.target}_sum", lambda: column_sums(weight.flatten(1)))
    tail = (packed, scale, sums, site.float_value("bias"), site.float_value("residual"), activation_of(site))
    options = (list(weight.shape[2:]), stride, padding, dilation, groups)
    assert x.spec is not None, "no refusal"
    if x.source is not None and out is None:
        scheme = (x.spec.dtype, x.spec.granularity, x.spec.symmetric, x.spec.range)
        return site.emit(ops.packed_conv_dynamic_int8.default, x.source, *tail, *options, *scheme)
    quantized = (x.quantized, x.scale, x.zero_point)
    return site.emit(ops.packed_conv_int8.default, *quantized, *tail, *options, *site.output_arguments())
