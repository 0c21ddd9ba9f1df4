"""One recipe for the whole model, and overrides for some modules and kinds of ops.

    python examples/mixed_precision_overrides.py

The model is a small BERT with random weights.
"""

import torch
import transformers
from torch import Tensor

import fxquant as fxq

RECIPE = fxq.Recipe(
    name="mixed",
    base="static",  # of the backend: static per-tensor ranges
    overrides=[
        # The first override that matches an op decides.
        fxq.Override(path="pooler.*", quantize=False),
        fxq.Override(path="encoder.layer.1.*", op="linear_add", specs={"activation": "float"}),
        fxq.Override(path="*.intermediate.*", specs={"activation": {"granularity": "per-token", "dynamic": True}}),
        fxq.Override(op="linear_add", specs={"activation": {"observer": "minmax"}}),
    ],
)


def batch(size: int = 4, length: int = 12) -> dict[str, Tensor]:
    """Return random tokens (size, length) and a mask that hides none of them."""
    ids = torch.randint(0, 100, (size, length))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def main() -> None:
    """Quantize a BERT of two layers with random weights, and show what the overrides did."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    model, batches = transformers.BertModel(config).eval(), [batch() for _ in range(8)]
    graph = fxq.quantize(model, batches[0], recipe=RECIPE, calibration=batches)
    for row in fxq.ledger(graph).rows:
        if row.family == "linear":
            print(f"{row.op:12} {row.module_path:38} {row.dtype:54} {row.reason}")
    print()
    print(fxq.compare(fxq.capture(model, batches[0]), graph, batches).to_table(limit=5))


if __name__ == "__main__":
    main()
