"""Graphs run node by node in arithmetic of one's choice, to find what makes two forms of one graph differ.

A `Rule` computes a node's value in another way from the values so far, or returns None to leave it as it is:

- `linear_once`: a Q/DQ linear as one fused multiply-add on exact integer sums, y = S·Σ (q_x − Z_x)·q_w + b rounded to
  float32 once, with S = S_x·S_w in float32; `kernel_once`: the same in the reference kernel, with the
  GELU of torch.
- `linear_in_double`: the product of the float32 factors that `dequantize` gives, in float64.
- `nudge`: the first linear of a Q/DQ graph one unit in the last place higher; all else as it was.
- `with_gelu`: a rule, and every GELU computed by a function of one's choice, such as `x86_gelu`, that of the C++
  kernels.

The fused multiply-add is computed in float64, which holds the product exactly; rounding twice differs from rounding
once in about one of 2^29 cases. What follows, residual and requantization, is the same operations in either graph.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from common import Batch
from torch import Tensor, fx
from torch.nn import functional

from fxquant.evaluation.embedding import mean_pool
from fxquant.evaluation.layers import call_leaves
from fxquant.graph import edit
from fxquant.graph.calling import read_call
from fxquant.kernels.reference.epilogue import finish, requantize
from fxquant.kernels.reference.linear import accumulate

GELU = torch.ops.aten.gelu.default
LINEAR = torch.ops.aten.linear.default
KERNEL = torch.ops.fxquant.linear_int8.default
Values = Mapping[fx.Node, Any]
Rule = Callable[[fx.Node, Values], Tensor | None]


class Run(fx.Interpreter):
    """Runs a graph under a rule, keeping every value in `env`."""

    def __init__(self, gm: fx.GraphModule, rule: Rule | None = None) -> None:
        super().__init__(gm, garbage_collect_values=False)
        self.rule = rule

    def run_node(self, n: fx.Node) -> Any:
        """Return the value of a node."""
        found = self.rule(n, self.env) if self.rule else None
        return super().run_node(n) if found is None else found

    def on(self, batch: Batch) -> list[Any]:
        """Return the leaves of the output for a batch."""
        with torch.no_grad():
            return list(self.run(*call_leaves(self.module, read_call(batch)), enable_io_processing=False))


def embeddings(gm: fx.GraphModule, batches: Iterable[Batch], rule: Rule | None = None) -> Tensor:
    """Return the mean-pooled first output of each sentence, (sentences, H)."""
    return torch.cat([mean_pool(Run(gm, rule).on(batch)[0], batch["attention_mask"]) for batch in batches])


def _is_quantized_linear(node: fx.Node) -> bool:
    return node.target is LINEAR and all(
        isinstance(arg, fx.Node) and arg.target is torch.ops.fxquant.dequantize.default for arg in node.args[:2]
    )


def _bias(node: fx.Node, values: Values) -> Tensor | None:
    return values[node.args[2]] if isinstance(node.args[2], fx.Node) else None


def _quantized(edge: Any, values: Values) -> tuple[Tensor, Tensor, Tensor]:
    """Return integers, scale and zero point behind a dequantize node."""
    q, scale, zero_point = (values[each] for each in edge.args[:3])
    return q, scale, zero_point


def _once(sums: Tensor, x_scale: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    y = sums.double() * (x_scale * weight_scale).double()
    return (y if bias is None else y + bias.double()).float()


def linear_once(node: fx.Node, values: Values) -> Tensor | None:
    """See above."""
    if not _is_quantized_linear(node):
        return None
    (q, x_scale, zero_point), (weight, weight_scale, _) = (_quantized(edge, values) for edge in node.args[:2])
    return _once(accumulate(q, zero_point, weight), x_scale, weight_scale, _bias(node, values))


def kernel_once(node: fx.Node, values: Values) -> Tensor | None:
    """See above."""
    if node.target is not KERNEL:
        return None
    read = [values[arg] if isinstance(arg, fx.Node) else arg for arg in node.args]
    x, x_scale, zero_point, weight, weight_scale, bias, residual, activation, *output = read
    y = _once(accumulate(x, zero_point, weight), x_scale, weight_scale, bias)
    return requantize(finish(y, activation, residual), *output)


def linear_in_double(node: fx.Node, values: Values) -> Tensor | None:
    """See above."""
    if not _is_quantized_linear(node):
        return None
    bias = _bias(node, values)
    x, weight = (values[edge].double() for edge in node.args[:2])
    return functional.linear(x, weight, None if bias is None else bias.double()).float()


def with_gelu(rule: Rule, gelu: Callable[[Tensor], Tensor]) -> Rule:
    """See above."""
    return lambda node, values: gelu(values[node.args[0]]) if node.target is GELU else rule(node, values)


def x86_gelu(y: Tensor) -> Tensor:
    """Return GELU as the x86 kernels compute it: that of a bias, in a linear of zeros."""
    width = y.numel()
    x, weight = torch.zeros(1, 4, dtype=torch.uint8), torch.zeros(-(-width // 64), 1, 64, 4, dtype=torch.int8)
    one, zero, sums = torch.tensor(1.0), torch.tensor(0, dtype=torch.int32), torch.zeros(width, dtype=torch.int32)
    tail = (None, "gelu", None, None, 0, 0, torch.float32)
    found: Tensor = torch.ops.fxquant.packed_linear_int8(x, one, zero, weight, one, sums, y.flatten(), *tail)
    return found.view_as(y)


def nudge(gm: fx.GraphModule) -> Rule:
    """Return the rule that moves the first quantized linear of `gm`; see above."""
    first = next(node for node in gm.graph.nodes if _is_quantized_linear(node))

    def rule(node: fx.Node, values: Values) -> Tensor | None:
        if node is not first:
            return None
        x, weight = (values[edge] for edge in node.args[:2])
        y = functional.linear(x, weight, _bias(node, values))
        return torch.nextafter(y, torch.full_like(y, torch.inf))

    return rule


def counterparts(qdq: fx.GraphModule, lowered: fx.GraphModule) -> dict[str, fx.Node]:
    """Return, for the name of each kernel call of a lowered graph, the node of the Q/DQ graph that it stands for."""
    found = {}
    nodes = {node.name: node for node in qdq.graph.nodes}
    claimed = {edit.marks(node)["claim"]["name"]: node for node in qdq.graph.nodes if "claim" in edit.marks(node)}
    for node in lowered.graph.nodes:
        facts = edit.marks(node)
        if "lowered" in facts:
            name = facts["claim"]["name"]
            anchor = claimed.get(name) or nodes[name]
            found[node.name] = next(iter(anchor.users)) if "requantized" in facts else anchor
    return found
