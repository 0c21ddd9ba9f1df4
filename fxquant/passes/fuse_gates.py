"""activation(gate(x))·up(x) → one product of the rows of both weights, which leaves their product alone.

The two linears of a gated feed-forward network (SwiGLU, GeGLU) read the same integers. One kernel multiplies them with
both weights block by block, so neither result reaches memory, and quantizes the product where that has one scale.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from fxquant.graph import edit
from fxquant.kernels import layout
from fxquant.passes.claims import hand_over

aten, ops = torch.ops.aten, torch.ops.fxquant
GEMM, GATED, QUANTIZE = ops.int8_gemm.default, ops.int8_gated_gemm.default, ops.quantize_static.default
# Operands with one entry for each row of the weight; the gate's come first.
JOINED = ("weight", "weight_scale", "weight_sum", "bias")


@dataclass(frozen=True)
class FuseGates:
    """Replace the product of two linears on the same integers, at most one of them activated, by one kernel."""

    name: ClassVar[str] = "fuse_gates"
    after: ClassVar[tuple[str, ...]] = ("lower", "merge_linears", "unpad")

    def apply(self, gm: fx.GraphModule) -> int:
        """Return how many products of linears became one kernel."""
        count = 0
        for node in gm.graph.find_nodes(op="call_function", target=aten.mul.Tensor):
            found = _gate_and_up(gm, node)
            if found is not None:
                _fuse(gm, node, *found)
                count += 1
        edit.sweep(gm)
        return count


def _gate_and_up(gm: fx.GraphModule, product: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """Return the two linears that a product multiplies, the activated one first; None where it is another product."""
    factors = [each for each in product.args[:2] if isinstance(each, fx.Node) and each.target is GEMM]
    if len(factors) != 2 or any(len(each.users) > 1 for each in factors):
        return None
    gate, up = sorted(factors, key=lambda each: _given(each)["activation"] == "none")
    given, beside = _given(gate), _given(up)
    alike = all(given[name] == beside[name] for name in ("x", "x_scale", "x_zero_point"))
    plain = all(each["residual"] is None and each["out_scale"] is None for each in (given, beside))
    if not alike or not plain or beside["activation"] != "none" or gate is up:
        return None
    return (gate, up) if all(_joinable(gm, given[name], beside[name]) for name in JOINED) else None


def _given(node: fx.Node) -> dict[str, Any]:
    """Return the arguments of a kernel call by their names in its schema."""
    assert isinstance(node.target, torch._ops.OpOverload)
    return {argument.name: value for argument, value in zip(node.target._schema.arguments, node.args, strict=True)}


def _joinable(gm: fx.GraphModule, first: Any, second: Any) -> bool:
    """Say whether two operands are both absent, or constants of one dtype and shape with an entry for each row."""
    if first is None or second is None:
        return first is second
    if not (edit.is_constant(first) and edit.is_constant(second)):
        return False
    one, other = edit.get_tensor(gm, first), edit.get_tensor(gm, second)
    return one.dtype == other.dtype and one.shape == other.shape and one.ndim > 0


def _fuse(gm: fx.GraphModule, product: fx.Node, gate: fx.Node, up: fx.Node) -> None:
    """Put one kernel in the place of a product of linears, and of the static quantization that alone reads it."""
    given, beside = _given(gate), _given(up)
    readers = list(product.users)
    quantize = readers[0] if len(readers) == 1 and readers[0].target is QUANTIZE else None
    parent = edit.path_of(up).rpartition(".")[0]
    joined = {name: _joined(gm, f"{parent}.gated_{name}".lstrip("."), given[name], beside[name]) for name in JOINED}
    out = quantize.args[1:] if quantize is not None else (None, None, 0, 0, torch.float32)
    args = (given["x"], given["x_scale"], given["x_zero_point"], *joined.values(), given["activation"], *out)
    last = quantize if quantize is not None else product
    with gm.graph.inserting_before(last):
        kernel = edit.call(gm.graph, GATED, args, like=product, value=edit.info(last))
    kernel.meta |= {key: value for key, value in last.meta.items() if key == "val"}
    edit.mark(kernel, path=parent or None)
    hand_over((gate, up, product), kernel)
    last.replace_all_uses_with(kernel)
    for node in (*([quantize] if quantize is not None else []), product, gate, up):
        gm.graph.erase_node(node)


def _joined(gm: fx.GraphModule, name: str, gate: fx.Node | None, up: fx.Node | None) -> fx.Node | None:
    """Return the constant that holds the gate's entries and behind them the up's."""
    if gate is None or up is None:
        return None
    first = next(iter(gm.graph.nodes))
    both = edit.add_constant(gm, name, torch.cat([edit.get_tensor(gm, gate), edit.get_tensor(gm, up)]), first)
    layout.join(gm, [gate, up], both)
    return both
