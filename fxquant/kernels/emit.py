"""Emitters that several kernel sets share: one for each op family, given the set's own ops."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxquant.graph import edit
from fxquant.kernels.int4 import unpack_int4
from fxquant.kernels.layout import Source
from fxquant.kernels.site import Operand, Site
from fxquant.kernels.table import Emitter
from fxquant.spec import QuantSpec

BYTES = (torch.int8, torch.uint8)
ACTIVATIONS = {
    "linear": "none",
    "linear_add": "none",
    "linear_relu": "relu",
    "linear_silu": "silu",
    "conv1d": "none",
    "conv1d_relu": "relu",
    "conv2d": "none",
    "conv2d_add": "none",
    "conv2d_add_relu": "add_relu",
    "conv2d_relu": "relu",
    "conv2d_silu": "silu",
}
_OF_ROWS = ("per-tensor", "per-token")  # the scales of activations that products of matrices take
UNQUANTIZED = "of float activations it gives float32, where its result is to be quantized"
LINEARS = ("linear", "linear_add", "linear_relu", "linear_silu", "linear_gelu")


def activation_of(site: Site) -> str:
    """Return the activation function that the site's pattern ends in, by the kernels' name for it."""
    if "approximate" in site.attrs:
        return "gelu_tanh" if site.attrs["approximate"] == "tanh" else "gelu"
    return ACTIVATIONS[site.op]


def bias_of(site: Site) -> fx.Node | None:
    """Return the bias of a linear or convolution, as integers where it is quantized; None where there is none."""
    bias = site.operands.get("bias")
    return (bias.quantized or bias.value) if bias else None


def refusal(site: Site) -> str | None:
    """Return why integer kernels cannot take a site's weight or activations, whatever its backend file allows."""
    weight, x = site.read("weight").spec, site.operands.get("x")
    if (
        weight is None
        or weight.dtype != "int8"
        or not weight.symmetric
        or weight.dynamic
        or weight.axis not in (None, 0, -2)
        or weight.group_size is not None
    ):
        return "the weight has to be int8, symmetric, static, and per-tensor or per-channel along axis 0"
    if x is not None and x.spec is not None and (x.spec.granularity not in _OF_ROWS or x.spec.format.floating):
        return "the activations have to be integers, per-tensor or per-token"
    return None


def integers_of(operand: Operand) -> tuple[fx.Node, fx.Node]:
    """Return the integers and the scale of a quantized operand."""
    assert operand.quantized is not None and operand.scale is not None, "a claimed weight is quantized"
    return operand.quantized, operand.scale


def linear_emitter(static: Any, weight_only: Any, dynamic: Any = None) -> Emitter:
    """Return the emitter of a linear kernel.

    Args:
        static: op for integer activations; also for dynamic ones where `dynamic` is None.
        weight_only: op for float activations.
        dynamic: op that quantizes its activations itself.
    """

    def emit(site: Site) -> fx.Node | str:
        refused = refusal(site)
        if refused is not None:
            return refused
        x, (weight, weight_scale) = site.read("x"), integers_of(site.read("weight"))
        tail = (bias_of(site), site.float_value("residual"), activation_of(site))
        if x.quantized is None or x.spec is None:
            if site.requantize is not None:
                return UNQUANTIZED
            return site.emit(weight_only, x.value, weight, weight_scale, *tail)
        if dynamic is not None and x.source is not None and site.requantize is None:
            spec = (x.spec.dtype, x.spec.granularity, x.spec.symmetric, x.spec.range)
            return site.emit(dynamic, x.source, weight, weight_scale, *tail, *spec)
        return site.emit(
            static, x.quantized, x.scale, x.zero_point, weight, weight_scale, *tail, *site.output_arguments()
        )

    return emit


def fp8_refusal(site: Site) -> str | None:
    """Return why a kernel of float8 products cannot take a site's operands, whatever its backend file allows."""
    x, weight = site.read("x"), site.read("weight").spec
    if x.quantized is None or x.spec is None or not x.spec.format.floating or x.spec.granularity not in _OF_ROWS:
        return "the activations have to be float8, per-tensor or per-token"
    if weight is None or not weight.format.floating or weight.dynamic or weight.axis not in (None, 0, -2):
        return "the weight has to be float8, static, and per-tensor or per-channel along axis 0"
    if weight.group_size is not None:
        return "the weight has to have one scale a tensor or a channel"
    return UNQUANTIZED if site.requantize is not None else None


def fp8_emitter(op: Any) -> Emitter:
    """Return the emitter of a linear of float8 activations and weights."""

    def emit(site: Site) -> fx.Node | str:
        refused = fp8_refusal(site)
        if refused is not None:
            return refused
        x = site.read("x")
        tail = (bias_of(site), site.float_value("residual"), activation_of(site), result_dtype(site))
        return site.emit(op, x.quantized, x.scale, *integers_of(site.read("weight")), *tail)

    return emit


def result_dtype(site: Site) -> torch.dtype:
    """Return the dtype of what a site computes; float32 where it is not known."""
    known = edit.info(site.anchor)
    return known.dtype if known else torch.float32


def weight_only_refusal(site: Site) -> str | None:
    """Return why a kernel of float activations cannot take a site's weight, whatever its backend file allows."""
    spec = site.read("weight").spec
    if site.read("x").quantized is not None:
        return "the activations have to stay in float"
    if site.requantize is not None:
        return UNQUANTIZED
    wide = spec is None or spec.format.floating or spec.format.torch_dtype is torch.int32
    if wide or spec is None or spec.dynamic or spec.axis not in (None, 0, -2):
        return "the weight has to have 8 or 4 bits, static, and one scale a tensor, a channel of axis 0 or a group"
    return None


def stored(node: fx.Node) -> fx.Node:
    """Return the constant behind the integers of a weight: the node itself, or the bytes that it unpacks."""
    return node if edit.is_constant(node) else node.all_input_nodes[0]


def read_integers(gm: fx.GraphModule, node: fx.Node) -> Tensor:
    """Return the integers of a weight, one an element: those of a constant, or of one that is unpacked from bytes."""
    tensor = edit.get_tensor(gm, stored(node))
    return tensor if edit.is_constant(node) else unpack_int4(tensor, *node.args[1:])  # type: ignore[arg-type]


@dataclass(frozen=True)
class Form:
    """How a kernel of float activations wants a weight (N, K), its scale and its zero point."""

    layout: str
    pack: Callable[[Tensor, QuantSpec], Tensor]
    pack_parameter: Callable[[Tensor, tuple[int, ...], QuantSpec], Tensor]
    arguments: Callable[[QuantSpec, tuple[int, ...]], tuple[int, ...]]  # what unpacking has to know


def weight_in_form(site: Site, form: Form) -> tuple[fx.Node, fx.Node, fx.Node | None]:
    """Return nodes of a site's weight, its scale and its zero point in a form; a tied weight is packed once."""
    weight = site.read("weight")
    node, spec, scale, zero_point = weight.quantized, weight.spec, weight.scale, weight.zero_point
    assert node is not None and spec is not None and scale is not None and zero_point is not None
    plain, shape = str(stored(node).target), shape_of(node)
    name = f"{plain}_{form.layout}"

    def of_groups(parameter: fx.Node) -> Tensor:
        return form.pack_parameter(edit.get_tensor(site.gm, parameter), shape, spec)

    source = Source(plain, form.layout, form.arguments(spec, shape))
    packed = site.constant(name, lambda: form.pack(read_integers(site.gm, node), spec), source)
    scales = site.constant(f"{name}_scale", lambda: of_groups(scale))
    zeros = None if spec.symmetric else site.constant(f"{name}_zero_point", lambda: of_groups(zero_point))
    return packed, scales, zeros


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Return the shape of a constant."""
    known = edit.info(node)
    assert known is not None, "constants are described"
    return known.shape


def emit_static_quantize(site: Site) -> fx.Node | str:
    """Emit a static per-tensor quantize that no kernel took over."""
    out = site.requantize
    if out is None or out.dtype not in BYTES:
        return "torch's own ops quantize"
    target, source = torch.ops.fxquant.quantize_static.default, site.read("x").value
    return site.emit(target, source, out.scale, out.zero_point, out.qmin, out.qmax, out.dtype)


def weight_only_emitter(op: Any) -> Emitter:
    """Return the emitter of a linear of float activations and weights of 8 or 4 bits, as they are stored."""

    def emit(site: Site) -> fx.Node | str:
        refused = weight_only_refusal(site)
        if refused is not None:
            return refused
        weight = site.read("weight")
        assert weight.quantized is not None and weight.spec is not None, "a claimed weight is quantized"
        tail = (bias_of(site), site.float_value("residual"), activation_of(site))
        values = (stored(weight.quantized), weight.scale, weight.zero_point)
        return site.emit(op, site.read("x").value, *values, *tail, weight.spec.dtype, weight.spec.group_size)

    return emit


def grouped_emitter(static: Any, weight_only: Any) -> Emitter:
    """Return the emitter of the linears of experts: the op for integer activations, and that for float ones."""

    def emit(site: Site) -> fx.Node | str:
        refused = refusal(site)
        if refused is not None:
            return refused
        x, weight, offsets = site.read("x"), integers_of(site.read("weight")), site.read("offsets").value
        if x.quantized is None:
            return site.emit(weight_only, x.value, *weight, offsets)
        return site.emit(static, x.quantized, x.scale, x.zero_point, *weight, offsets)

    return emit


def embedding_emitter(op: Any) -> Emitter:
    """Return the emitter of a table look-up in integer rows."""

    def emit(site: Site) -> fx.Node | str:
        refused = refusal(site)
        if refused is not None:
            return refused
        return site.emit(op, *integers_of(site.read("weight")), site.read("indices").value)

    return emit


def matmul_emitter(op: Any) -> Emitter:
    """Return the emitter of a product of two integer activations."""

    def emit(site: Site) -> fx.Node | str:
        a, b = site.read("a"), site.read("b")
        if a.quantized is None or b.quantized is None:
            return "both factors have to be quantized"
        if any(each.spec is not None and each.spec.format.floating for each in (a, b)):
            return "both factors have to be integers"
        factors = (a.quantized, a.scale, a.zero_point, b.quantized, b.scale, b.zero_point)
        return site.emit(op, *factors, *site.output_arguments())

    return emit
