"""Multi30k and its words for `translation.py`: sentence pairs, one vocabulary for both languages, batches by tokens."""

import csv
import gzip
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

END, PAD, UNKNOWN = 0, 1, 2  # as Marian's own models number them but for the padding, which they put last
SPECIAL = ["</s>", "<pad>", "<unk>"]
Pair = tuple[list[int], list[int]]  # the ids of a sentence and of its translation, the end's last


@dataclass(frozen=True)
class Batch:
    """Sentences of like lengths: ids and masks of the source, what the decoder reads, and what it is to say next."""

    ids: Tensor
    mask: Tensor
    shifted: Tensor
    wanted: Tensor


def read_pairs(data: Path, split: str) -> list[tuple[str, str]]:
    """Return the English and German sentences of train, val or test2016."""
    with gzip.open(data / "multi30k" / f"{split}.tsv.gz", "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [(row["en"].strip(), row["de"].strip()) for row in rows]


def learn_vocabulary(pairs: Sequence[tuple[str, str]], size: int) -> Tokenizer:
    """Return byte-pair merges learnt on both languages at once; a mark in front of a word stands for its space."""
    tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL[UNKNOWN]))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=SPECIAL, min_frequency=2, show_progress=False)
    tokenizer.train_from_iterator((text for pair in pairs for text in pair), trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Return ids of texts, the end's last."""
    return [[*found.ids, END] for found in tokenizer.encode_batch(list(texts))]


def encode_pairs(tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]) -> list[Pair]:
    """Return ids of sentences and translations."""
    sides = [encode(tokenizer, [pair[side] for pair in pairs]) for side in (0, 1)]
    return list(zip(*sides, strict=True))


def epoch(pairs: Sequence[Pair], tokens: int, order: random.Random) -> Iterator[Batch]:
    """Yield all pairs, at most about `tokens` padded ones of a side at a time, in an order of the generator's."""
    mixed = sorted(order.sample(list(pairs), len(pairs)), key=longer)  # stable: equal lengths stay mixed
    batches: list[list[Pair]] = [[]]
    for pair in mixed:
        if (len(batches[-1]) + 1) * longer(pair) > tokens:
            batches.append([])
        batches[-1].append(pair)
    order.shuffle(batches)
    yield from map(collate, batches)


def longer(pair: Pair) -> int:
    """Return how many tokens the longer side has."""
    return max(len(pair[0]), len(pair[1]))


def collate(pairs: Sequence[Pair]) -> Batch:
    """Return pairs as a batch; the decoder starts with the padding, as Marian's does."""
    ids, wanted = padded([source for source, _ in pairs]), padded([target for _, target in pairs])
    shifted = torch.nn.functional.pad(wanted, (1, -1), value=PAD)
    return Batch(ids, (ids != PAD).long(), shifted, wanted)


def padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """Return rows of ids as one tensor, padded on the right."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=PAD)
