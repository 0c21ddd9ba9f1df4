"""The ARM kernel set: qnnpack, where it is asked for, or the reference stands in for C++ kernels that cannot be had."""

import torch
from torch import fx

from fxquant.graph import edit
from fxquant.kernels.arm import devices, qnnpack
from fxquant.kernels.cpu.emitters import CpuKernels
from fxquant.kernels.emit import BYTES, activation_of, embedding_emitter, integers_of, linear_emitter, refusal
from fxquant.kernels.reference import embedding, linear
from fxquant.kernels.site import Site

__all__ = ["devices", "embedding", "linear", "qnnpack"]  # importing them defines the ops and registers the devices

ops = torch.ops.fxquant

_reference = linear_emitter(ops.linear_int8.default, ops.linear_weight_int8.default)


def emit_linear(site: Site) -> fx.Node | str:
    """Emit a linear on a plain weight: qnnpack's where it is asked for and computes the site, else the reference's."""
    if refusal(site) or not qnnpack.asked_for():
        return _reference(site)
    return _static(site) or _dynamic(site) or _reference(site)


def _static(site: Site) -> fx.Node | None:
    """Emit integer activations in, integer results out; None where the engine does not do that."""
    x, out, weight = site.read("x"), site.requantize, integers_of(site.read("weight"))
    by_tensor = x.spec is not None and x.spec.granularity == "per-tensor" and x.source is None
    if not by_tensor or out is None or out.dtype not in BYTES:
        return None
    activation, bias = activation_of(site), site.operands.get("bias")
    if activation not in ("none", "relu") or site.float_value("residual") is not None:
        return None
    constants = [x.scale, weight[1], out.scale, *([bias.value] if bias else [])]
    if not all(node is not None and edit.is_constant(node) for node in constants):
        return None
    x_scale, weight_scale, out_scale, *rest = (edit.get_tensor(site.gm, node) for node in constants if node is not None)
    if not qnnpack.fits(x_scale, weight_scale, rest[0] if rest else None, out_scale):
        return None
    quantized = (x.quantized, x.scale, x.zero_point, *weight, site.float_value("bias"), activation)
    return site.emit(ops.qnnpack_linear_int8.default, *quantized, *site.output_arguments())


def _dynamic(site: Site) -> fx.Node | None:
    """Emit float activations in and out, quantized over the whole tensor; None where another way is asked for."""
    x = site.read("x")
    if x.source is None or x.spec is None or site.requantize is not None:
        return None
    if (x.spec.dtype, x.spec.granularity, x.spec.symmetric) != ("uint8", "per-tensor", False):
        return None
    tail = (site.float_value("bias"), site.float_value("residual"), activation_of(site))
    return site.emit(ops.qnnpack_linear_dynamic_int8.default, x.source, *integers_of(site.read("weight")), *tail)


CpuKernels("arm", emit_linear, embedding_emitter(ops.embedding_int8.default)).register()
