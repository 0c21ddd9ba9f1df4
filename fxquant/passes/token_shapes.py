"""What is known of packed values, and the views that bring tokens to the axis where they are packed."""

from math import prod

import torch
from torch import fx

from fxquant.graph import edit
from fxquant.graph.edit import TensorInfo

aten = torch.ops.aten


def describe_packed(node: fx.Node, axis: int, mask: fx.Node) -> None:
    """Record that a node's value has one row of tokens along `axis`; in the example as many as `mask` has places."""
    known, whole = edit.info(node), edit.info(mask)
    node.meta.pop("val", None)
    if known is None or whole is None:
        return
    shape, dynamic = list(known.shape), list(known.dynamic)
    shape[0], dynamic[0] = 1, False
    shape[axis], dynamic[axis] = prod(whole.shape), True
    edit.mark(node, value=TensorInfo(known.dtype, tuple(shape), tuple(dynamic)).to_dict())


def resize(node: fx.Node, axis: int) -> None:
    """Let a reshape or an expansion, described as padded, give one row of tokens along `axis`."""
    known = edit.info(node)
    if node.target not in (aten.reshape.default, aten.expand.default) or known is None:
        return
    sizes = list(known.shape)
    sizes[0], sizes[axis] = 1, -1
    node.update_arg(1, sizes)


def exchanged(value: fx.Node, axis: int) -> fx.Node:
    """Return a value with its axes 1 and `axis` exchanged, inserted at the graph's place of insertion."""
    known = edit.info(value)
    if axis == 1 or known is None:
        return value
    shape, dynamic = list(known.shape), list(known.dynamic)
    shape[1], shape[axis] = shape[axis], shape[1]
    dynamic[1], dynamic[axis] = dynamic[axis], dynamic[1]
    info = TensorInfo(known.dtype, tuple(shape), tuple(dynamic))
    return edit.call(value.graph, aten.transpose.int, (value, 1, axis), like=value, value=info)


def with_leading_axis(value: fx.Node) -> fx.Node:
    """Return a value with one more axis of size 1 before the others."""
    known = edit.info(value)
    assert known is not None, "what is packed is known"
    info = TensorInfo(known.dtype, (1, *known.shape), (False, *known.dynamic))
    return edit.call(value.graph, aten.unsqueeze.default, (value, 0), like=value, value=info)
