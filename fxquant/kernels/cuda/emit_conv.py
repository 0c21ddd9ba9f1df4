"""Puts `fxquant::int8_conv` into a graph; convolutions in groups run exactly, on torch's operators."""

from math import prod

import torch
from torch import fx

from fxquant.graph import edit
from fxquant.kernels.cuda import conv, gemm
from fxquant.kernels.cuda.triton_support import refusal
from fxquant.kernels.emit import BYTES, activation_of, bias_of, integers_of
from fxquant.kernels.emit_conv import conv_emitter, conv_refusal, geometry
from fxquant.kernels.layout import Source
from fxquant.kernels.site import Site

ops = torch.ops.fxquant
_reference = conv_emitter(ops.conv_int8.default)


def emit_conv(site: Site) -> fx.Node | str:
    """Emit a convolution on a weight whose taps are rows."""
    refused = conv_refusal(site)
    if refused is not None:
        return refused
    node, scale = integers_of(site.read("weight"))
    weight = edit.get_tensor(site.gm, node)
    refused = refusal(weight.device)
    if refused is not None:
        return refused
    stride, padding, dilation, groups = geometry(site)
    wide = site.requantize is not None and site.requantize.dtype not in BYTES
    if wide or groups != 1 or prod(weight.shape[1:]) > gemm.DEEPEST:
        return _reference(site)
    x, target = site.read("x"), str(node.target)
    packed = site.constant(f"{target}_packed", lambda: conv.pack(weight), Source(target, "filters_in_rows"))
    sums = site.constant(f"{target}_sum", lambda: gemm.row_sums(weight.flatten(1)))
    operands = (x.quantized, x.scale, x.zero_point, packed, scale, sums)
    tail = (bias_of(site), site.float_value("residual"), activation_of(site))
    options = (list(weight.shape[2:]), stride, padding, dilation)
    return site.emit(ops.int8_conv.default, *operands, *tail, *options, *site.output_arguments())
