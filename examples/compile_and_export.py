"""A lowered graph in other toolchains: torch.compile, torch.export, and the Q/DQ graph for compilers with own kernels.

    python examples/compile_and_export.py

torch.compile needs a C++ compiler.
"""

import torch
from torch import Tensor, nn

import fxquant as fxq
from fxquant.graph.targets import name_of


class Named(nn.Module):
    """A graph behind a forward with the model's own parameters, so that an export can name their dynamic sizes."""

    def __init__(self, graph: nn.Module) -> None:
        super().__init__()
        self.inner = graph

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return what the graph returns."""
        return self.inner(x=x, mask=mask)


class Masked(nn.Module):
    """Two layers; the mask zeroes places of the result."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 8))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return (batch, 8) for x (batch, 32) and mask (batch, 1)."""
        return self.layers(x) * mask


def main() -> None:
    """Run one quantized graph eagerly, compiled and exported, and list the Q/DQ operators of its portable form."""
    torch.manual_seed(0)
    model, inputs = Masked().eval(), {"x": torch.randn(4, 32), "mask": torch.ones(4, 1)}
    converted = fxq.convert(fxq.prepare(fxq.capture(model, inputs), "x86", "dynamic"))
    lowered = fxq.lower(converted)
    with torch.no_grad():
        expected = lowered(**inputs)
        print("compiled, same outputs:", torch.equal(torch.compile(lowered)(**inputs), expected))
        # torch.export hands keyword arguments to a bare GraphModule by position: wrap it, so that their order is free.
        shuffled = dict(reversed(inputs.items()))
        fixed = torch.export.export(fxq.Program({"forward": lowered}), (), shuffled)
        print("exported, same outputs:", torch.equal(fixed.module()(**shuffled), expected))
        sizes = {name: {0: torch.export.Dim.AUTO} for name in inputs}
        varying = torch.export.export(Named(lowered), (), inputs, dynamic_shapes=sizes)
        more = {"x": torch.randn(7, 32), "mask": torch.ones(7, 1)}
        print("exported for any batch:", torch.equal(varying.module()(**more), lowered(**more)))
    calls = {name_of(node.target) for node in converted.graph.nodes if node.op == "call_function"}
    print("calls in the Q/DQ graph:", *sorted(calls), sep="\n  ")


if __name__ == "__main__":
    main()
