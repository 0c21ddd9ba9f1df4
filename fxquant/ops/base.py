"""`QuantOp`: a pattern that a backend rule may claim, with the guard that says why a match is none."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import fx

from fxquant.graph.edit import info, is_constant
from fxquant.graph.pattern import Match, Mismatch, Pattern
from fxquant.ops.vectors import Example
from fxquant.registry import Registry

Guard = Callable[[Match], str | None]


@dataclass(frozen=True)
class QuantOp:
    """A quantizable op or fusion.

    `roles` are the tensors that a rule may give a spec to: the pattern's parameters and "output". `example` gives
    values for them, with which rules and kernels are tried.
    """

    name: str
    pattern: Pattern
    guard: Guard | None
    example: Example | None = None

    @property
    def roles(self) -> tuple[str, ...]:
        return (*self.pattern.roles, "output")

    def match(self, node: fx.Node) -> Match | Mismatch:
        """Match at `node`, guard included; a guard's refusal counts deeper than any mismatch of structure."""
        found = self.pattern.match(node)
        if isinstance(found, Mismatch) or self.guard is None:
            return found
        refusal = self.guard(found)
        return found if refusal is None else Mismatch(refusal, self.pattern.size + 1)


OPS: Registry[QuantOp] = Registry("op")


def quant_op(
    *, guard: Guard | None = None, example: Example | None = None
) -> Callable[[Callable[..., object]], QuantOp]:
    """Return a decorator that registers a pattern function as the quantizable op of its name.

    Without an `example`, `fxquant backend check` cannot try rules for the op.
    """

    def register(function: Callable[..., object]) -> QuantOp:
        pattern = Pattern.of(function)
        return OPS.add(pattern.name, QuantOp(pattern.name, pattern, guard, example))

    return register


_DEQUANTIZING = {f"fxquant.{name}.default" for name in ("dequantize", "dequantize_groups", "unpack_int4")}


def read_constant(node: fx.Node | None) -> fx.Node | None:
    """Return the get_attr node behind `node`, looking through what makes floats of stored integers; else None."""
    while node is not None and node.op == "call_function" and str(node.target) in _DEQUANTIZING:
        node = node.args[0] if isinstance(node.args[0], fx.Node) else None
    return node if is_constant(node) else None


def weight_is_parameter(match: Match) -> str | None:
    """Guard: the weight is a parameter or buffer, so that it can be quantized ahead of time."""
    weight = match.values["weight"]
    if read_constant(weight) is None:
        return f"weight %{weight} is computed at run time, not a parameter"
    return None


def reads_float32(match: Match) -> str | None:
    """Guard: every tensor is float32, which the float side of the kernels is in; token ids are no such tensor."""
    for role, value in match.values.items():
        known = info(value) if value is not None else None
        if known is not None and known.dtype is not torch.float32:
            return f"{role} %{value} is {known.dtype}, not torch.float32"
    return None


def output_keeps_shape(match: Match) -> str | None:
    """Guard: the residual is a tensor of its own, and does not broadcast the output to a larger shape."""
    inner = match.nodes[1]
    if match.values["residual"] is inner:
        return f"the residual is %{inner} itself"
    before, after = info(inner), info(match.anchor)
    if before and after and (before.shape, before.dynamic) != (after.shape, after.dynamic):
        return f"the residual broadcasts the output from {list(before.shape)} to {list(after.shape)}"
    return None
