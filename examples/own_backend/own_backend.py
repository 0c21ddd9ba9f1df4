"""A backend file of one's own: what it takes is quantized for it, what it does not take says why.

    python examples/own_backend/own_backend.py
    fxquant backend check examples/own_backend/npu.toml

The file is npu.toml.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

import fxquant as fxq


class Tagger(nn.Module):
    """A table of words, two layers, and a head whose input is 24 features wide, which is no multiple of 16."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(100, 32)
        self.first = nn.Linear(32, 64)
        self.second = nn.Linear(64, 24)
        self.head = nn.Linear(24, 5)

    def forward(self, ids: Tensor) -> Tensor:
        """Return scores (batch, sequence, 5) for ids (batch, sequence)."""
        return self.head(self.second(self.first(self.words(ids)).relu()))


def main() -> None:
    """Quantize the model for the backend file beside this script, and show what became of every op."""
    torch.manual_seed(0)
    model = Tagger().eval()
    batches = [{"ids": torch.randint(0, 100, (4, 16))} for _ in range(8)]
    backend = fxq.load_backend(Path(__file__).with_name("npu.toml"))
    print(f"{backend.name}: {backend.description}\n")
    graph = fxq.quantize(model, batches[0], backend=backend, recipe="static", calibration=batches)
    print(fxq.ledger(graph).to_table())
    try:
        fxq.quantize(model, batches[0], backend=backend, recipe="static", calibration=batches, strict=True)
    except fxq.CoverageError as error:
        print(f"\nwith strict=True: {error}")


if __name__ == "__main__":
    main()
