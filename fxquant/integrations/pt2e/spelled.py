"""Q/DQ graphs in the operators that other exporters know: `quantized_decomposed` ones, and plain ATen.

What has fixed scales, one or one per channel, becomes the operators that exporters look for; for what knows the whole
dialect also scales found at run time (dynamic.py) and groups. The rest becomes calls of Python functions, which the
export after this traces to ATen.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxquant.errors import ConfigError
from fxquant.graph import edit
from fxquant.integrations.pt2e.dynamic import spell_dynamic
from fxquant.integrations.pt2e.operators import called, decomposed
from fxquant.integrations.pt2e.products import PRODUCTS, RELU
from fxquant.kernels import qdq
from fxquant.kernels.emit import read_integers, stored
from fxquant.passes.qdq_nodes import CHOOSE_QPARAMS, DEQUANTIZE, DEQUANTIZE_GROUPS, QUANTIZE, UNPACK_INT4
from fxquant.spec import QuantSpec

_EMBEDDING = torch.ops.aten.embedding.default


@dataclass(frozen=True)
class Style:
    """What a converter makes of weights.

    `float_weights`: it reads a quantize and a dequantize, not a dequantize of integers. `lone_weights`: it reads one
    wherever it is, not only in an op whose operand is quantized, too. `whole`: it knows all operators of
    quantized_decomposed, not only those with fixed scales.
    """

    float_weights: bool = False
    lone_weights: bool = True
    whole: bool = False


def spelled(qdq_graph: fx.GraphModule, style: Style) -> fx.GraphModule:
    """Return a converted graph, which is left as it is, without operators of fxquant; it computes the same numbers.

    Raises:
        ConfigError: there is no other way to write an operator of it.
    """
    gm = edit.clone(qdq_graph)
    operators = decomposed()
    for node in list(gm.graph.nodes):
        if node.target is UNPACK_INT4:
            _unpack(gm, node)
        elif node.target is _EMBEDDING:
            _spell_embedding(node)
    edit.sweep(gm)
    if style.whole:
        spell_dynamic(gm)
        _spell_groups(gm)
    for node in [node for node in gm.graph.nodes if node.target in (QUANTIZE, DEQUANTIZE)]:
        if _is_fixed(node) and (style.lone_weights or not _is_lone(node)):
            _spell_fixed(gm, node, operators, style.float_weights)
    for node in gm.graph.nodes:
        node.target = _FUNCTIONS.get(node.target, node.target)
    edit.sweep(gm)
    left = {str(node.target) for node in gm.graph.nodes if str(node.target).startswith("fxquant.")}
    if left:
        raise ConfigError(
            f"exporters know no operator for {', '.join(sorted(left))}: keep what is computed by it in float, or write "
            "the graph with fxquant itself"
        )
    gm.recompile()
    return gm


def _is_fixed(node: fx.Node) -> bool:
    return edit.is_constant(node.args[1]) and edit.is_constant(node.args[2])


def _is_lone(node: fx.Node) -> bool:
    """Say whether a weight is read by an op whose activations are in float, or go to it with a fixed scale alone."""
    source: Any = node.args[0]
    if node.target is not DEQUANTIZE or not edit.is_constant(source):
        return False
    return not all(user.target in PRODUCTS and _is_integer(user) for user in node.users)


def _is_integer(op: fx.Node) -> bool:
    """Say whether an op takes scales found at run time, or takes and gives values with fixed ones."""
    if called(op.args[0]) == "dequantize_per_token":  # type: ignore[arg-type]
        return True
    behind = [reader for user in op.users for reader in (user.users if user.target is RELU else [user])]
    return _is_a("dequantize", op.args[0]) and all(_is_a("quantize", reader) for reader in behind)


def _is_a(verb: str, node: Any) -> bool:
    """Say whether a node is a quantize or a dequantize with fixed scales, however it is spelled by now."""
    mine = {"quantize": QUANTIZE, "dequantize": DEQUANTIZE}[verb]
    return (called(node) or "").startswith(f"{verb}_per_") or (node.target is mine and _is_fixed(node))


def _spell_groups(gm: fx.GraphModule) -> None:
    """Replace the dequantize of weights with scales for groups, where all groups are full, by the operator for it."""
    for node in gm.graph.find_nodes(op="call_function", target=DEQUANTIZE_GROUPS):
        source, scale, zero_point, size = node.args
        known = edit.info(source)
        if known is None or len(known.shape) != 2 or known.shape[-1] % size or not _is_fixed(node):
            continue
        spec = QuantSpec.from_dict(edit.marks(node)["spec"])
        scales = edit.get_tensor(gm, scale)
        # in 32 bits: the operator subtracts them in the wider type of both
        zeros = edit.get_tensor(gm, zero_point).to(torch.int32).expand(scales.shape).contiguous()
        place = edit.add_constant(gm, f"{zero_point.target}_groups", zeros, node)
        args = (source, scale, place, spec.qmin, spec.qmax, known.dtype, size, torch.float32)
        target = decomposed().dequantize_per_channel_group.default
        with gm.graph.inserting_before(node):
            edit.replace(node, edit.call(gm.graph, target, args, like=node, value=edit.info(node)))


def _unpack(gm: fx.GraphModule, node: fx.Node) -> None:
    """Store the integers of a 4-bit constant one to a byte: exporters have no operator for two."""
    integers = read_integers(gm, node)
    edit.replace(node, edit.add_constant(gm, f"{stored(node).target}_unpacked", integers, node))


def _spell_fixed(gm: fx.GraphModule, node: fx.Node, operators: Any, float_weights: bool) -> None:
    """Replace a quantize or dequantize with constant scales by the operator of its kind."""
    arguments: tuple[Any, ...] = node.args
    source, scale_node, zero_node, axis = arguments[:4]
    scale, zero_point = (edit.get_tensor(gm, each) for each in (scale_node, zero_node))
    spec = QuantSpec.from_dict(edit.marks(node)["spec"])
    scheme = (scale, zero_point, axis, spec.qmin, spec.qmax, _integers(node))
    verb = "quantize" if node.target is QUANTIZE else "dequantize"
    with gm.graph.inserting_before(node):
        if verb == "dequantize" and float_weights and edit.is_constant(source):
            floats = qdq.dequantize(edit.get_tensor(gm, source), scale, zero_point, axis)
            source = edit.add_constant(gm, f"{source.target}_float", floats, node)
            source = _call(gm, node, operators, "quantize", source, scheme)
        edit.replace(node, _call(gm, node, operators, verb, source, scheme))


def _integers(node: fx.Node) -> torch.dtype:
    source: Any = node.args[0]
    known = edit.info(node if node.target is QUANTIZE else source)
    assert known is not None, "convert describes what it makes"
    return known.dtype


def _call(
    gm: fx.GraphModule, like: fx.Node, operators: Any, verb: str, source: fx.Node, scheme: tuple[Any, ...]
) -> fx.Node:
    scale, zero_point, axis, *limits = scheme
    if axis is None:
        target = getattr(operators, f"{verb}_per_tensor").default
        return edit.call(
            gm.graph, target, (source, float(scale), int(zero_point), *limits), like=like, value=edit.info(like)
        )
    target = getattr(operators, f"{verb}_per_channel").default
    scales = edit.add_constant(gm, "scales", scale, like)
    # in the type that exporters expect, whatever that of the integers is
    zeros = edit.add_constant(gm, "zero_points", zero_point.to(torch.int64).expand(scale.shape).contiguous(), like)
    return edit.call(gm.graph, target, (source, scales, zeros, axis, *limits), like=like, value=edit.info(like))


def _spell_embedding(node: fx.Node) -> None:
    """Let an embedding of a dequantized table look up integers and scales, rather than dequantize the whole table."""
    table = node.args[0]
    if isinstance(table, fx.Node) and table.target is DEQUANTIZE and table.args[3] == 0:
        with node.graph.inserting_before(node):
            edit.replace(node, edit.call(node.graph, _rows, (*table.args[:3], node.args[1]), like=node))


def _rows(integers: Tensor, scale: Tensor, zero_point: Tensor, ids: Tensor) -> Tensor:
    """Return the rows (…, width) of a table of integers that ids (…) name, dequantized by a scale for each row."""
    found = torch.nn.functional.embedding(ids, integers).to(torch.int32)
    zeros = zero_point if zero_point.ndim == 0 else zero_point[ids].unsqueeze(-1)
    return (found - zeros).to(torch.float32) * scale[ids].unsqueeze(-1)


def _groups(integers: Tensor, scale: Tensor, zero_point: Tensor, group_size: int) -> Tensor:
    """Return what `dequantize_groups` does, by a reshape where all groups are full, which every exporter has."""
    if integers.shape[-1] % group_size:
        return qdq.dequantize_groups(integers, scale, zero_point, group_size)
    parts = integers.reshape(*scale.shape, group_size).to(torch.int32)
    zeros = zero_point if zero_point.ndim == 0 else zero_point.unsqueeze(-1)
    return ((parts - zeros).to(torch.float32) * scale.unsqueeze(-1)).reshape(integers.shape)


# what the export after this traces to ATen
_FUNCTIONS: dict[Any, Any] = {
    QUANTIZE: qdq.quantize,
    DEQUANTIZE: qdq.dequantize,
    DEQUANTIZE_GROUPS: _groups,
    CHOOSE_QPARAMS: qdq.choose_qparams,
}
