"""What a kernel's emitter is given: one claimed op of a Q/DQ graph, its operands by role."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from fxquant.graph import edit
from fxquant.kernels import layout
from fxquant.spec import QuantSpec


@dataclass(frozen=True)
class Operand:
    """One tensor that a claimed op reads.

    `value` is what the op reads in the Q/DQ graph. Where it is quantized, `quantized` is the integer node, `scale` and
    `zero_point` its parameters, and `spec` its scheme; `source` is the float node that a dynamic spec quantizes at run
    time.
    """

    value: fx.Node
    quantized: fx.Node | None = None
    scale: fx.Node | None = None
    zero_point: fx.Node | None = None
    spec: QuantSpec | None = None
    source: fx.Node | None = None


@dataclass(frozen=True)
class Requantize:
    """The quantization that directly follows a claimed op and that its kernel may do itself."""

    node: fx.Node
    scale: fx.Node
    zero_point: fx.Node
    qmin: int
    qmax: int
    dtype: Any


@dataclass(frozen=True)
class Site:
    """A claimed op about to be replaced by a kernel.

    `operands` has the roles of the op except the output; an optional tensor that is absent is missing, or None. `attrs`
    are the pattern's literals. `requantize` is set where the result goes into one static quantize and nowhere else.
    """

    gm: fx.GraphModule
    anchor: fx.Node
    op: str
    operands: dict[str, Operand | None]
    attrs: dict[str, Any] = field(default_factory=dict)
    requantize: Requantize | None = None

    def read(self, role: str) -> Operand:
        """Return the operand of a role that is present."""
        operand = self.operands[role]
        assert operand is not None, f"{self.op} has no {role}"
        return operand

    def float_value(self, role: str) -> fx.Node | None:
        """Return what the op reads at an optional role, in float."""
        operand = self.operands.get(role)
        return operand.value if operand else None

    def output_arguments(self) -> tuple[Any, ...]:
        """Return what a kernel takes to requantize: scale, zero point, qmin, qmax and dtype; float32 without."""
        out = self.requantize
        if out is None:
            return None, None, 0, 0, torch.float32
        return out.scale, out.zero_point, out.qmin, out.qmax, out.dtype

    def constant(self, name: str, make: Callable[[], Tensor], source: layout.Source | None = None) -> fx.Node:
        """Return a node of the constant called `name`, made at the first site that asks for it.

        `source` says of what weight it is another layout, from which that weight can be had back.
        """
        found: list[fx.Node] = self.gm.graph.find_nodes(op="get_attr", target=name)
        if not found:
            made = edit.add_constant(self.gm, name, make(), self.anchor)
            if source is not None:
                layout.record(self.gm, made, source)
            return made
        if not found[0] < self.anchor:  # sites come by their first node, and a fused one asked at its last
            self.anchor.prepend(found[0])
        return found[0]

    def emit(self, target: Any, *args: Any) -> fx.Node:
        """Insert the kernel call in front of the op it replaces."""
        place = self.requantize.node if self.requantize else self.anchor
        with self.gm.graph.inserting_before(place):
            return edit.call(self.gm.graph, target, args, like=self.anchor, value=edit.info(place))
