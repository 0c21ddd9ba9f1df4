"""What Q/DQ graphs hold of each parameter of their model: integers and how its readers are quantized, or floats."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from fxquant.errors import ExportError
from fxquant.graph import edit
from fxquant.integrations.checkpoints.adopt import INDEX_SELECT
from fxquant.integrations.checkpoints.layer import Layer
from fxquant.kernels.int4 import unpack_int4
from fxquant.ops.base import read_constant
from fxquant.passes.qdq_nodes import DEQUANTIZE, DEQUANTIZE_GROUPS, QUANTIZE, UNPACK_INT4
from fxquant.spec import FORMATS, QParams, QuantSpec

LINEAR = torch.ops.aten.linear.default
# What `convert` and the canonical passes put behind the name of a parameter.
_INTEGERS = re.compile(rf"_({'|'.join(FORMATS)})(_\d+)?$")
_TRANSPOSED = re.compile(r"_t(_\d+)?$")


@dataclass(frozen=True)
class Stored:
    """A quantized parameter: its layer, whether only linears read it, and whether it is transposed in the graph.

    `node` is a node that reads it, for reports.
    """

    layer: Layer
    linear: bool
    transposed: bool
    node: fx.Node


def collect(graphs: Iterable[fx.GraphModule]) -> tuple[dict[str, Stored], dict[str, Tensor]]:
    """Return the quantized parameters of a model's graphs, and its float ones, by their names in the model.

    Raises:
        ExportError: linears that read one weight quantize their inputs in different ways.
    """
    stored: dict[str, Stored] = {}
    floats: dict[str, Tensor] = {}
    for gm in graphs:
        for node in gm.graph.nodes:
            if node.target in (DEQUANTIZE, DEQUANTIZE_GROUPS) and read_constant(node) is not None:
                _add(stored, gm, node)
            elif edit.is_constant(node):
                tensor, name = edit.get_tensor(gm, node).detach(), str(node.target)
                floats[name] = tensor
                if tensor.ndim == 2 and _TRANSPOSED.search(name):
                    floats.setdefault(_TRANSPOSED.sub("", name), tensor.T)
    return stored, floats


def _add(stored: dict[str, Stored], gm: fx.GraphModule, node: fx.Node) -> None:
    constant = read_constant(node)
    assert constant is not None
    name = _INTEGERS.sub("", str(constant.target))
    plain = _TRANSPOSED.sub("", name)
    weight, linear = _weight(gm, node), all(user.target is LINEAR for user in node.users)
    for user in node.users:
        layer = _with_input(gm, user, weight) if user.target is LINEAR else weight
        known = stored.setdefault(plain, Stored(layer, linear, plain != name, node))
        if known.linear and linear and not _alike(known.layer, layer):
            raise ExportError(f"linears that read {plain} quantize their inputs in different ways: a file holds one")
        stored[plain] = replace(known, linear=known.linear and linear)


def _alike(first: Layer, second: Layer) -> bool:
    """Say whether two readers of one weight say the same of their inputs."""
    return _plain(first) == _plain(second)


def _plain(layer: Layer) -> tuple[object, ...]:
    order = None if layer.order is None else layer.order.tolist()
    scale = layer.activation_qparams
    return layer.activation, order, None if scale is None else (float(scale.scale), int(scale.zero_point))


def _weight(gm: fx.GraphModule, node: fx.Node) -> Layer:
    """Return what a dequantize of a constant says, as a layer without inputs."""
    q, scale, zero_point, scheme = node.args
    assert isinstance(q, fx.Node) and isinstance(scale, fx.Node) and isinstance(zero_point, fx.Node)
    spec = QuantSpec.from_dict(edit.marks(node)["spec"])
    constant = read_constant(node)
    assert constant is not None
    integers = edit.get_tensor(gm, constant).detach()
    if q.target is UNPACK_INT4:
        integers = unpack_int4(integers, *q.args[1:])  # type: ignore[arg-type]
    by_group = node.target is DEQUANTIZE_GROUPS
    axis, size = (None, scheme) if by_group else (scheme, None)
    qparams = QParams(edit.get_tensor(gm, scale), edit.get_tensor(gm, zero_point), axis, size)  # type: ignore[arg-type]
    return Layer(spec, integers, qparams)


def _with_input(gm: fx.GraphModule, linear: fx.Node, layer: Layer) -> Layer:
    """Return the layer with what stands before the input of a linear: a quantization, and an order of columns."""
    node = linear.args[0]
    while isinstance(node, fx.Node) and node.op == "call_function":
        if node.target is DEQUANTIZE and layer.activation is None:
            layer = replace(layer, **_activation(gm, node))  # type: ignore[arg-type]
        elif node.target is INDEX_SELECT and layer.order is None and _is_order(gm, node):
            layer = replace(layer, order=edit.get_tensor(gm, node.args[2]))  # type: ignore[arg-type]
        elif node.target is not QUANTIZE:
            break
        node = node.args[0]
    return layer


def _activation(gm: fx.GraphModule, node: fx.Node) -> dict[str, object]:
    spec = QuantSpec.from_dict(edit.marks(node)["spec"])
    if spec.dynamic:
        return {"activation": spec}
    scale, zero_point = (edit.get_tensor(gm, each) for each in node.args[1:3])  # type: ignore[arg-type]
    return {"activation": spec, "activation_qparams": QParams(scale, zero_point)}


def _is_order(gm: fx.GraphModule, node: fx.Node) -> bool:
    known, (_, axis, index) = edit.info(node), node.args
    if known is None or axis not in (-1, len(known.shape) - 1) or not edit.is_constant(index):
        return False
    assert isinstance(index, fx.Node)
    order = edit.get_tensor(gm, index)
    return torch.equal(torch.sort(order).values, torch.arange(known.shape[-1], dtype=order.dtype))
