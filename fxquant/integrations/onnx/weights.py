"""Linears to products with constants as ONNX's runtimes fuse them: x·W + b with W [K, N] behind one dequantize."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from fxquant.graph import edit
from fxquant.graph.edit import TensorInfo
from fxquant.integrations.onnx.ops import DEQUANTIZE_BLOCKS
from fxquant.kernels.emit import read_integers, stored
from fxquant.passes.qdq_nodes import DEQUANTIZE, DEQUANTIZE_GROUPS
from fxquant.spec import QuantSpec

aten = torch.ops.aten


@dataclass(frozen=True)
class LinearsToProducts:
    """linear(x, dequantize(w), b) → matmul(x, dequantize(wᵀ)) + b. Same numbers.

    Runtimes look for Q/DQ next to a MatMul whose weight is [K, N], and a transpose between them hides it.
    """

    name: ClassVar[str] = "linears_to_products"
    after: ClassVar[tuple[str, ...]] = ("float_biases", "merge_products")

    def apply(self, gm: fx.GraphModule) -> int:
        """Return how many linears became products."""
        turned: dict[fx.Node, fx.Node] = {}
        count = 0
        for node in list(gm.graph.nodes):
            if node.target is aten.linear.default and _is_quantized(node.args[1]):
                _rewrite(gm, node, turned)
                count += 1
        edit.sweep(gm)
        return count


def _is_quantized(weight: Any) -> bool:
    """Say whether a weight has scales for its rows, its groups, or as a whole; one for its columns stays as it is."""
    if not isinstance(weight, fx.Node) or weight.target not in (DEQUANTIZE, DEQUANTIZE_GROUPS):
        return False
    return weight.target is DEQUANTIZE_GROUPS or weight.args[3] in (0, None)


def _rewrite(gm: fx.GraphModule, node: fx.Node, turned: dict[fx.Node, fx.Node]) -> None:
    x, weight, bias = node.args
    assert isinstance(weight, fx.Node), "checked by the caller"
    if weight not in turned:
        turned[weight] = _transposed(gm, weight)
    with gm.graph.inserting_before(node):
        known = edit.info(node)
        product = edit.call(gm.graph, aten.matmul.default, (x, turned[weight]), like=node, value=known)
        if bias is not None:
            assert isinstance(bias, fx.Node), "a bias is a tensor"
            product = _added(gm, node, product, bias)
    edit.replace(node, product)


def _added(gm: fx.GraphModule, node: fx.Node, product: fx.Node, bias: fx.Node) -> fx.Node:
    """Return product + bias. Of a matrix it is added in three dimensions: in two, a runtime makes a Gemm of both, and
    its integer Gemm takes no bias in float.
    """
    known = edit.info(node)
    if known is None or len(known.shape) != 2:
        return edit.call(gm.graph, aten.add.Tensor, (product, bias), like=node, value=known, alpha=1)
    wide = edit.add_constant(gm, f"{bias.target}_wide", edit.get_tensor(gm, bias)[None, None], node)
    value = TensorInfo(known.dtype, (1, *known.shape), (False, *known.dynamic))
    total = edit.call(gm.graph, aten.add.Tensor, (product, wide), like=node, value=value, alpha=1)
    return edit.call(gm.graph, aten.squeeze.dim, (total, 0), like=node, value=known)


def _transposed(gm: fx.GraphModule, weight: fx.Node) -> fx.Node:
    """Return a dequantize of the transposed weight, where `weight` stands."""
    source, scale, zero_point, scheme = weight.args
    assert isinstance(source, fx.Node) and isinstance(scale, fx.Node) and isinstance(zero_point, fx.Node)
    q, name = read_integers(gm, source), stored(source).target
    constant = edit.add_constant(gm, f"{name}_transposed", q.t().contiguous(), weight)
    value = TensorInfo(torch.float32, tuple(q.t().shape), (False, False))
    args: tuple[Any, ...] = (constant, scale, zero_point, 1 if scheme == 0 else None)
    target, dtype = DEQUANTIZE, QuantSpec.from_dict(edit.marks(weight)["spec"]).dtype
    if weight.target is DEQUANTIZE_GROUPS:
        blocks = [_blocks(gm, each, weight) for each in (scale, zero_point)]
        target, args = DEQUANTIZE_BLOCKS, (constant, *blocks, 0, scheme, dtype)
    elif dtype in ("int4", "uint4"):
        target, args = DEQUANTIZE_BLOCKS, (constant, scale, zero_point, 1, 0, dtype)
    with gm.graph.inserting_before(weight):
        new = edit.call(gm.graph, target, args, like=weight, value=value)
    edit.mark(new, spec=edit.marks(weight).get("spec"))
    return new


def _blocks(gm: fx.GraphModule, node: fx.Node, before: fx.Node) -> fx.Node:
    """Return a scale or zero point [N, groups] as [groups, N]; one that is () as it is."""
    tensor = edit.get_tensor(gm, node)
    return edit.add_constant(gm, f"{node.target}_transposed", tensor.t().contiguous(), before) if tensor.ndim else node
