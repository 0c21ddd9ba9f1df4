"""fxquant's passes on a graph that someone else captured, and the result in the hands of Inductor.

    python examples/other_compilers.py

Inductor needs a C++ compiler.
"""

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

import fxquant as fxq
from fxquant import transforms
from fxquant.passes.base import Pipeline
from fxquant.passes.canonical_arguments import NormalizeArguments
from fxquant.passes.canonical_norm import RecomposeNorms


class Block(nn.Module):
    """A norm in small steps, two projections of its result, and a product of these."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(32) + 0.5)
        self.gate, self.up = nn.Linear(32, 64, bias=False), nn.Linear(32, 64, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, 64) for x (batch, 32)."""
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight
        return torch.relu(self.gate(x)) * self.up(x) / 8


def count(gm: torch.fx.GraphModule) -> int:
    """Return how many calls a graph makes."""
    return sum(node.op == "call_function" for node in gm.graph.nodes)


def main() -> None:
    """Rewrite an exported graph with single passes, then quantize it, and compile both with Inductor."""
    torch.manual_seed(0)
    model, x = Block().eval(), torch.randn(4, 32)
    sizes = ({0: torch.export.Dim.AUTO},)
    foreign = torch.export.export(model, (x,), dynamic_shapes=sizes).module()  # or any other GraphModule of ATen calls

    # Single passes: each edits a graph in place. The pipeline checks their order and the graph after each.
    before = count(foreign)
    passes = (NormalizeArguments(), RecomposeNorms(), transforms.MergeLinears(), transforms.DivisionToMultiplication())
    Pipeline(passes).run(foreign)
    foreign.graph.eliminate_dead_code()
    foreign.recompile()
    with torch.no_grad():
        torch.testing.assert_close(foreign(x), model(x), rtol=1e-5, atol=1e-6)
        print(f"rewritten in place: {before} calls, now {count(foreign)}")
        torch.testing.assert_close(torch.compile(foreign)(x), model(x), rtol=1e-5, atol=1e-6)
        print("compiled by Inductor: equal")

        # The whole way: captured anew with the caller's own structure, then lowered to integer kernels.
        lowered = fxq.quantize(foreign, (x,))
        expected = lowered(x)
        print("calls of the lowered graph:", *(str(n.target) for n in lowered.graph.nodes if n.op == "call_function"))
        print("lowered, compiled by Inductor, same outputs:", torch.equal(torch.compile(lowered)(x), expected))

        # Ahead of time: the kernels are operators, which the package calls in a process that has imported fxquant.
        exported = torch.export.export(fxq.Program({"forward": lowered}), (x,))
        with tempfile.TemporaryDirectory() as folder:
            package = torch._inductor.aoti_compile_and_package(exported, package_path=str(Path(folder, "block.pt2")))
            again = torch._inductor.aoti_load_package(package)(x)
        print("lowered, compiled ahead of time, same outputs:", torch.equal(again, expected))


if __name__ == "__main__":
    main()
