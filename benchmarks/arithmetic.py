"""Graphs run node by node in arithmetic of one's choice, to find what makes two forms of one graph differ.

A `Rule` computes a node's value in another way from the values so far, or returns None to leave it as it is:

- `exact_linear`: a Q/DQ linear as its meaning in real numbers, S_x·S_w·Σ (q_x − Z_x)·q_w + b, rounded to float32 once.
- `double_linear`: the product of the float32 factors that `dequantize` gives, in float64.
- `kernel_linear`: the reference kernel's own sequence of operations, in the Q/DQ graph.
- `exact_kernel`: the reference kernel with its scale and bias applied in float64, rounded to float32 once.
- `x86_kernel`: the reference kernel with its scales in the order in which torch's x86 kernels apply them, as found by
  trying: (Σ·S_x)·S_w + b in oneDNN's fused one, and b + (Σ·S_w)·S_x, the last two in one rounding, per token.
- `nudge`: the first linear of a Q/DQ graph one unit in the last place higher; all else as it was.

float64 holds the integer sums and S_x·S_w exactly; two more roundings at 2^-53 change the float32 result in about one
of 2^28 cases. Activation, residual and requantization follow in float32, the same operations in either graph.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from common import Batch
from torch import Tensor, fx

from fxquant.evaluation.embedding import mean_pool
from fxquant.evaluation.layers import call_leaves
from fxquant.graph import edit
from fxquant.kernels.reference.epilogue import finish, requantize
from fxquant.kernels.reference.linear import accumulate

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
            return list(self.run(*call_leaves(self.module, batch), enable_io_processing=False))


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


def _rounded_once(sums: Tensor, x_scale: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    y = sums.double() * (x_scale.double() * weight_scale.double())
    return (y if bias is None else y + bias.double()).float()


def _x86_order(sums: Tensor, x_scale: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    if x_scale.ndim == 0:
        y = sums.float() * x_scale * weight_scale
        return y if bias is None else y + bias
    y = sums.float() * weight_scale
    return y * x_scale if bias is None else torch.addcmul(bias, y, x_scale)


def exact_linear(node: fx.Node, values: Values) -> Tensor | None:
    """See above."""
    if not _is_quantized_linear(node):
        return None
    (q, x_scale, zero_point), (weight, weight_scale, _) = (_quantized(edge, values) for edge in node.args[:2])
    sums = torch.nn.functional.linear((q.int() - zero_point).double(), weight.double())
    return _rounded_once(sums, x_scale, weight_scale, _bias(node, values))


def double_linear(node: fx.Node, values: Values) -> Tensor | None:
    """See above."""
    if not _is_quantized_linear(node):
        return None
    bias = _bias(node, values)
    x, weight = (values[edge].double() for edge in node.args[:2])  # type: ignore[index]
    return torch.nn.functional.linear(x, weight, None if bias is None else bias.double()).float()


def kernel_linear(node: fx.Node, values: Values) -> Tensor | None:
    """See above."""
    if not _is_quantized_linear(node):
        return None
    (q, x_scale, zero_point), (weight, weight_scale, _) = (_quantized(edge, values) for edge in node.args[:2])
    no_output = (None, None, 0, 0, torch.float32)
    quantized = (q, x_scale, zero_point, weight, weight_scale)
    y: Tensor = KERNEL(*quantized, _bias(node, values), None, "none", *no_output)
    return y


def exact_kernel(node: fx.Node, values: Values) -> Tensor | None:
    """See above."""
    return _kernel(node, values, _rounded_once)


def x86_kernel(node: fx.Node, values: Values) -> Tensor | None:
    """See above."""
    return _kernel(node, values, _x86_order)


def _kernel(node: fx.Node, values: Values, scaled: Callable[..., Tensor]) -> Tensor | None:
    """Return the reference kernel's result with `scaled` for what follows the integer sums."""
    if node.target is not KERNEL:
        return None
    read = [values[arg] if isinstance(arg, fx.Node) else arg for arg in node.args]
    x, x_scale, zero_point, weight, weight_scale, bias, residual, activation, *output = read
    y = scaled(accumulate(x, zero_point, weight), x_scale, weight_scale, bias)
    return requantize(finish(y, activation, residual), *output)


def nudge(gm: fx.GraphModule) -> Rule:
    """Return the rule that moves the first quantized linear of `gm`; see above."""
    first = next(node for node in gm.graph.nodes if _is_quantized_linear(node))

    def rule(node: fx.Node, values: Values) -> Tensor | None:
        if node is not first:
            return None
        x, weight = (values[edge] for edge in node.args[:2])  # type: ignore[index]
        y = torch.nn.functional.linear(x, weight, _bias(node, values))
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
