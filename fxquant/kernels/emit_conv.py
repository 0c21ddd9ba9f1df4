"""Emitters of convolutions that several kernel sets share."""

from typing import Any

from torch import fx

from fxquant.kernels.emit import activation_of, bias_of, integers_of
from fxquant.kernels.site import Site
from fxquant.kernels.table import Emitter

CONVOLUTIONS = (
    "conv1d",
    "conv1d_relu",
    "conv1d_gelu",
    "conv2d",
    "conv2d_relu",
    "conv2d_gelu",
    "conv2d_silu",
    "conv2d_add",
    "conv2d_add_relu",
)


def conv_refusal(site: Site) -> str | None:
    """Return why integer kernels cannot take a convolution, whatever its backend file allows."""
    x, weight = site.read("x").spec, site.read("weight").spec
    if x is None or x.granularity not in ("per-tensor", "per-sample") or x.dtype not in ("int8", "uint8"):
        return "the activations have to be integers of 8 bits, per-tensor or per-sample"
    if weight is None or weight.dtype != "int8" or not weight.symmetric or weight.axis not in (None, 0):
        return "the weight has to be int8, symmetric, and per-tensor or per-channel along axis 0"
    grouped = weight.group_size is not None or weight.dynamic
    return "the weight has to have static scales, one a tensor or a channel" if grouped else None


def geometry(site: Site) -> tuple[Any, ...]:
    """Return the stride, padding, dilation and groups of a convolution."""
    return tuple(site.attrs[name] for name in ("stride", "padding", "dilation", "groups"))


def conv_emitter(op: Any) -> Emitter:
    """Return the emitter of a convolution of integer activations."""

    def emit(site: Site) -> fx.Node | str:
        refused = conv_refusal(site)
        if refused is not None:
            return refused
        x = site.read("x")
        quantized = (x.quantized, x.scale, x.zero_point, *integers_of(site.read("weight")))
        tail = (bias_of(site), site.float_value("residual"), activation_of(site), *geometry(site))
        return site.emit(op, *quantized, *tail, *site.output_arguments())

    return emit
