"""The encoders that cpu_encoders.py and cpu_costs.py measure, their batches, and what a batch costs at least."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import torch
import transformers
from common import Batch
from peaks import Peaks
from peers import Material
from torch import nn

import fxquant as fxq
from fxquant.evaluation.pretrained import Pretrained

NAMES = ("minilm", "bert-base")
SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256}


@dataclass(frozen=True)
class Cell:
    """The shape of a batch; a ragged one has sequences of different lengths, 55 % of the tokens are no padding."""

    size: int
    tokens: int
    ragged: bool = False

    @property
    def name(self) -> str:
        return f"{self.size}x{self.tokens}{'-ragged' if self.ragged else ''}"

    def lengths(self) -> list[int]:
        """Return the tokens of each sequence, those of a ragged batch evenly spread from 10 % to all, shuffled."""
        if not self.ragged:
            return [self.tokens] * self.size
        spread = torch.linspace(0.1, 1, self.size).mul(self.tokens).round().int()
        order = torch.randperm(self.size, generator=torch.Generator().manual_seed(0))
        return [int(length) for length in spread[order]]


CELLS = (Cell(8, 128), Cell(8, 128, ragged=True), Cell(1, 128), Cell(1, 16), Cell(32, 64), Cell(1, 512))


@dataclass(frozen=True)
class Subject:
    """A model to measure; `held_out` are sentences to judge its embeddings by, none where its weights are random."""

    name: str
    material: Material
    held_out: tuple[str, ...] = ()

    @property
    def model(self) -> nn.Module:
        return self.material.model

    @property
    def config(self) -> Any:
        return self.model.config

    def batch(self, cell: Cell) -> Batch:
        """Return random tokens in the shape of a cell: how long a call takes does not depend on them."""
        return random_batch(self.config.vocab_size, cell.lengths(), cell.tokens, seed=0)

    def fits(self, cell: Cell) -> bool:
        """Return whether the model takes so many tokens."""
        return cell.tokens <= int(self.config.max_position_embeddings)

    def digest(self) -> str:
        """Return what tells this model and its calibration from others."""
        sums = [float(each.double().sum()) for each in self.model.state_dict().values()]
        text = f"{self.config.to_json_string()} {sums} {len(self.material.calibration)}"
        return f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def limit(self, cell: Cell, peaks: Peaks) -> float:
        """Return the seconds that a cell's products need at the peaks: those of linears in int8, of attention in float.

        The padding of a ragged batch is counted as if it were tokens.
        """
        linear, attention = operations(self.config, cell)
        return linear / peaks.int8 + attention / peaks.float32


def operations(config: Any, cell: Cell) -> tuple[float, float]:
    """Return the operations of linear layers and of attention, two for each multiplication with its addition."""
    hidden, layers, tokens = config.hidden_size, config.num_hidden_layers, cell.size * cell.tokens
    linear = layers * tokens * (4 * hidden**2 + 2 * hidden * config.intermediate_size) + cell.size * hidden**2
    attention = layers * 2 * tokens * cell.tokens * hidden
    return 2.0 * linear, 2.0 * attention


def random_batch(vocabulary: int, lengths: list[int], tokens: int, seed: int) -> Batch:
    """Return sequences of random tokens, padded."""
    shape = (len(lengths), tokens)
    ids = torch.randint(vocabulary // 30, vocabulary, shape, generator=torch.Generator().manual_seed(seed))
    mask = (torch.arange(tokens) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": ids * mask, "token_type_ids": torch.zeros(shape, dtype=torch.long), "attention_mask": mask}


def load_example(name: str, folder: Path | None, small: bool) -> tuple[nn.Module, Batch]:
    """Return a model of `NAMES`, from a folder, else packaged or random, and a batch to capture it with."""
    if name == "bert-base" and folder is None:
        return random_bert(small)
    pretrained = common.load_model(folder)
    return pretrained.model, pretrained.example_inputs()


def random_bert(small: bool) -> tuple[nn.Module, Batch]:
    """Return BERT-base, or a small BERT, with random weights, which take as long as trained ones, and an example."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.BertModel(transformers.BertConfig(**(SMALL if small else {}))).eval()
    return model, random_batch(model.config.vocab_size, [64, 32], 64, seed=0)


def load_subject(name: str, folder: Path | None, sentences: int, batches: int, small: bool) -> Subject:
    """Return a model with `batches` batches to calibrate and, where its weights are real, sentences to judge it by."""
    if name == "bert-base" and folder is None:
        model, example = random_bert(small)
        pretrained, captured = Pretrained(model, None, (), 512), fxq.capture(model, example)
        many, vocabulary = min(batches, 8), model.config.vocab_size
        calibration = [random_batch(vocabulary, [64] * 8, 64, seed) for seed in range(1, many + 1)]
        return Subject(name, Material(pretrained, captured, calibration))
    pretrained = common.load_model(folder)
    texts, held_out = common.texts(sentences, 8 * batches)
    captured = fxq.capture(pretrained.model, pretrained.example_inputs())
    return Subject(name, Material(pretrained, captured, pretrained.batches(texts)), tuple(held_out))
