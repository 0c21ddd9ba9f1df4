"""The stages one by one, with the graph that each of them returns.

    python examples/staged_verbs.py

The backend is the portable one, so the output is the same on every machine.
"""

import tempfile

import torch
from torch import Tensor, fx, nn

import fxquant as fxq
from fxquant.graph.text import to_text


class Block(nn.Module):
    """Two layers with a relu and a transposition between them."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(16, 32)
        self.down = nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        """Return (sequence, batch, 8) for x (batch, sequence, 16)."""
        return self.down(self.up(x).relu().transpose(0, 1))


def show(title: str, graph: fx.GraphModule) -> None:
    """Print a graph without the facts that fxquant keeps on its nodes."""
    lines = [line.partition(' {"')[0] for line in to_text(graph).splitlines()]
    print(f"── {title}", *lines, "", sep="\n")


def main() -> None:
    """Run every stage; none of them changes the graph that it is given."""
    torch.manual_seed(0)
    model, batches = Block().eval(), [{"x": torch.randn(4, 6, 16)} for _ in range(8)]
    captured = fxq.capture(model, batches[0])
    show("captured: ATen calls, sizes that may vary", captured)
    prepared = fxq.prepare(captured, "reference", "static")
    show("prepared: claimed ops, observers on static edges", prepared)
    fxq.calibrate(prepared, batches)
    converted = fxq.convert(prepared)
    show("converted: the portable Q/DQ graph", converted)
    lowered = fxq.lower(converted)
    show("lowered: kernels of one backend; the value between them is int8", lowered)
    with tempfile.TemporaryDirectory() as folder:
        fxq.save(lowered, folder)
        loaded = fxq.load(folder)
    with torch.no_grad():
        x = torch.randn(2, 3, 16)
        print(f"loaded equals saved: {torch.equal(loaded(x=x), lowered(x=x))}")
        print(f"largest difference from float: {(lowered(x) - model(x)).abs().max():.4f}")


if __name__ == "__main__":
    main()
