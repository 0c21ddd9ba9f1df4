"""fxquant as a quantizer of transformers: quantize while loading, save, load again, generate, export.

    python examples/transformers_quantizer.py

The models are tiny and have random weights, so that nothing is downloaded; give `from_pretrained` your own folder.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import transformers
from transformers.exporters.configs import DynamoConfig
from transformers.exporters.exporter_dynamo import DynamoExporter

import fxquant as fxq
from fxquant.integrations.transformers import FxQuantConfig, FxQuantizer

SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def classify(folder: Path) -> None:
    """Quantize a classifier with its head in float, and load what was saved."""
    transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES)).save_pretrained(folder / "bert")
    auto = transformers.AutoModelForSequenceClassification
    config = FxQuantConfig(recipe="dynamic", modules_to_not_convert=["classifier"])
    model = auto.from_pretrained(folder / "bert", quantization_config=config)
    model.save_pretrained(folder / "bert-int8")
    again = auto.from_pretrained(folder / "bert-int8")
    ids = torch.randint(3, 64, (2, 12))
    print("the same logits after loading:", torch.equal(again(ids).logits, model(ids).logits))
    print(fxq.ledger(again.fxquant).summary())


def generate(folder: Path) -> None:
    """Quantize a causal LM, and generate before saving and after loading."""
    config = transformers.LlamaConfig(**SIZES, pad_token_id=0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder / "llama")
    auto = transformers.AutoModelForCausalLM
    model = auto.from_pretrained(folder / "llama", quantization_config=FxQuantConfig("weight-only-int4"))
    model.save_pretrained(folder / "llama-int4")
    ids = torch.randint(3, 64, (1, 6))
    first, second = (
        each.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
        for each in (model, auto.from_pretrained(folder / "llama-int4"))
    )
    print("the same tokens after loading:", torch.equal(first, second))


def export(folder: Path) -> None:
    """Export the float classifier with static ranges by transformers' own exporter."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder / "bert")
    batches = [{"input_ids": torch.randint(3, 64, (2, 12))} for _ in range(4)]
    quantizer = FxQuantizer("static", calibration_dataset=batches)
    program = DynamoExporter().export(model, dict(batches[0]), DynamoConfig(quantizer=quantizer)).program
    names = {str(node.target) for node in program.graph.nodes if "quantize" in str(node.target)}
    print("operators of the exported program:", *sorted(names), sep="\n  ")


def main() -> None:
    """Run the three."""
    torch.manual_seed(0)
    with TemporaryDirectory() as folder:
        classify(Path(folder))
        generate(Path(folder))
        export(Path(folder))


if __name__ == "__main__":
    main()
