"""CTranslate2's int8 encoder, the one peer that leaves the padding of ragged batches out of its linear layers."""

import importlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from common import Batch
from encoder_models import Subject
from systems import Context, System, quiet


def encoder(context: Context) -> System:
    """Return the converted model; weights int8, activations quantized per token as they come."""
    library, folder = importlib.import_module("ctranslate2"), context.folder / "ctranslate2"
    if not (folder / "model.bin").exists():
        with quiet():
            source = written(context.subject, context.folder / "transformers")
            converter = importlib.import_module("ctranslate2.converters").TransformersConverter
            converter(str(source)).convert(str(folder), quantization="int8", force=True)
    threads = {"inter_threads": 1, "intra_threads": context.threads}
    model = library.Encoder(str(folder), device="cpu", compute_type="int8", **threads)
    remark = "" if model.compute_type.startswith("int8") else f"compute type is {model.compute_type}"
    return System(lambda **batch: call(model, library.StorageView.from_array, batch), lambda batch: remark)


def call(model: Any, view: Any, batch: Batch) -> SimpleNamespace:
    """Return hidden states and pooled output; padding is told by the sequences' lengths."""
    ids, lengths = batch["input_ids"].int().numpy(), batch["attention_mask"].sum(1).int().numpy()
    found = model.forward_batch(view(ids), view(lengths), batch["token_type_ids"].tolist())
    hidden, pooled = (torch.from_numpy(np.array(each)) for each in (found.last_hidden_state, found.pooler_output))
    return SimpleNamespace(last_hidden_state=hidden, pooler_output=pooled)


def written(subject: Subject, folder: Path) -> Path:
    """Write the model in Hugging Face's layout and return the folder; the converter wants a tokenizer, too."""
    tokenizer = subject.material.pretrained.tokenizer or counting(subject.config.vocab_size)
    subject.model.save_pretrained(folder)  # type: ignore[operator]
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    # The converter asks for what this transformers no longer writes.
    (folder / "config.json").write_text(json.dumps({"position_embedding_type": "absolute"} | config))
    return folder


def counting(vocabulary: int) -> Any:
    """Return a tokenizer of numbered words, for a model with random weights."""
    transformers = importlib.import_module("transformers")
    special = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}
    words = special | {f"word{number}": number for number in range(len(special), vocabulary)}
    models = importlib.import_module("tokenizers").models
    inner = importlib.import_module("tokenizers").Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    names = {f"{each[1:-1].lower()}_token": each for each in special}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **names)
