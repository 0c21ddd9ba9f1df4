"""CTranslate2's int8 encoder, the one peer that leaves the padding of ragged batches out of its linear layers.

It runs in a process of its own (ctranslate2_worker.py says why), which is told to run and says when it has: that takes
some 50 µs more than a call.
"""

import importlib
import json
import pickle
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import Batch
from encoder_models import Subject
from systems import Context, System, quiet
from torch import Tensor


def encoder(context: Context) -> System:
    """Return the converted model; weights int8, activations quantized per token as they come."""
    folder = context.folder / "ctranslate2"
    if not (folder / "model.bin").exists():
        with quiet():
            source = written(context.subject, context.folder / "transformers")
            converter = importlib.import_module("ctranslate2.converters").TransformersConverter
            converter(str(source)).convert(str(folder), quantization="int8", force=True)
    worker = Worker(folder, context.threads)
    kind = worker.ask("type")
    remark = "" if kind.startswith("int8") else f"compute type is {kind}"
    return System(worker, lambda batch: remark)


class Worker:
    """The process that runs the model, called as the model; what it found is fetched when it is read."""

    def __init__(self, folder: Path, threads: int) -> None:
        command = [sys.executable, str(Path(__file__).with_name("ctranslate2_worker.py")), str(folder), str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.batch: Batch = {}

    def __call__(self, **batch: Tensor) -> "Found":
        """Run on a batch; it is sent only if it is another than before."""
        if any(batch[name] is not self.batch.get(name) for name in batch):
            self.batch = batch
            lengths = batch["attention_mask"].sum(1).int().numpy()
            ids = {"input_ids": batch["input_ids"].int().numpy(), "lengths": lengths}
            self.send(ids | {"token_type_ids": batch["token_type_ids"].tolist()})
        self.ask("run")
        return Found(self)

    def ask(self, message: str) -> Any:
        """Return the answer to a message."""
        self.send(message)
        return pickle.load(self.process.stdout)  # type: ignore[arg-type]

    def send(self, message: object) -> None:
        """Send a message without waiting for an answer."""
        assert self.process.stdin is not None
        pickle.dump(message, self.process.stdin)
        self.process.stdin.flush()


@dataclass(frozen=True)
class Found:
    """The output of the last run."""

    worker: Worker

    @property
    def last_hidden_state(self) -> Tensor:
        return torch.from_numpy(self.worker.ask("result")[0])


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
