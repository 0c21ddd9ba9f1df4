"""Shapes that depend on data: an export has only a symbol for them, a run on the example has the example's sizes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fxquant.graph import edit
from fxquant.graph.hints import has_hint


def measure_unknown(gm: fx.GraphModule, inputs: Sequence[Tensor]) -> None:
    """Give every tensor of a size that depends on data the shape that it has for these inputs, as a fact of its node.

    The symbolic value goes: nothing may be proven from it, and no example size can be had of it.
    """
    unknown = {node for node in gm.graph.nodes if _is_unknown(node.meta.get("val"))}
    if unknown:
        with torch.no_grad():
            _Measure(gm, unknown).run(*inputs, enable_io_processing=False)


def _is_unknown(value: Any) -> bool:
    return isinstance(value, Tensor) and any(
        isinstance(size, torch.SymInt) and not has_hint(size) for size in value.shape
    )


class _Measure(fx.Interpreter):
    """Runs a graph and notes the shapes of some of its nodes."""

    def __init__(self, gm: fx.GraphModule, unknown: set[fx.Node]) -> None:
        super().__init__(gm)
        self.unknown = unknown

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self.unknown and isinstance(value, Tensor):
            dynamic = tuple(not isinstance(size, int) for size in n.meta.pop("val").shape)
            edit.mark(n, value=edit.TensorInfo(value.dtype, tuple(value.shape), dynamic).to_dict())
        return value
