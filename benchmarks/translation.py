"""English to German in float32 and in int8: a model of Marian's architecture, trained here on Multi30k; BLEU and speed.

    python benchmarks/translation.py [--data DIR] [--work DIR] [--recipes dynamic ...] [--beams 4] [--threads 2]

The first run trains (MarianMTModel, 7.6 million parameters, one byte-pair vocabulary and one matrix for both languages
and the head), within 45 minutes on two cores that multiply bfloat16. The checkpoint stays below --work, and a run that
was interrupted continues from its last epoch. Nothing is chosen by test2016, whose BLEU (sacrebleu's: cased, 13a)
is reported. The models translate each batch in turn; tokens are those that are said, the ends among them. Needs
sacrebleu (pip install sacrebleu), and tokenizers, which comes with transformers.
"""

import argparse
import importlib.util
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import common
import torch
from tokenizers import Tokenizer
from torch import Tensor
from translation_data import PAD, collate, encode, encode_pairs, learn_vocabulary, padded, read_pairs
from translation_training import Plan, train

import fxquant as fxq

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fxquant" / "translation"
LONGEST = 80  # tokens of a translation
FLOAT = "float32, transformers"
Generate = Callable[..., Tensor]


@dataclass
class Translations:
    """What a model said so far: rows of ids by the number of their sentence, how many tokens, and how long it took."""

    rows: dict[int, list[int]] = field(default_factory=dict)
    tokens: int = 0
    seconds: float = 0.0


def main(arguments: list[str] | None = None) -> None:
    """Train what is not trained yet, and print the table."""
    args = parse(arguments)
    torch.set_num_threads(args.threads)
    if not (args.data / "multi30k").exists():
        print(f"translation skipped: there is no {args.data / 'multi30k'} (--data, FXQUANT_DATA)")
        return
    if importlib.util.find_spec("sacrebleu") is None:
        print("translation skipped: sacrebleu is not installed: pip install sacrebleu")
        return
    common.quieten()
    print(common.machine(), flush=True)
    tokenizer, model = trained(args.data, args.work, Plan())
    weights = sum(value.numel() for value in model.parameters() if value.requires_grad)
    pairs = read_pairs(args.data, "test2016")[: args.limit]
    makers = {FLOAT: model.generate}
    size = {FLOAT: f"{4 * weights / 1e6:.1f} MB"}
    for recipe in args.recipes:
        makers[recipe], size[recipe] = quantized(model, tokenizer, pairs, recipe)
    said = translate(makers, encode(tokenizer, [source for source, _ in pairs]), args.batch, args.beams)
    show(
        said,
        size,
        tokenizer,
        [target for _, target in pairs],
        f"{weights / 1e6:.2f} million weights, {args.beams} beams",
    )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("FXQUANT_DATA", "../shared/data")))
    parser.add_argument("--work", type=Path, default=CACHE, help="folder of the vocabulary and the checkpoint")
    parser.add_argument("--recipes", nargs="+", default=["dynamic"], help="packaged ones, or paths of .toml files")
    parser.add_argument("--limit", type=int, default=1000, help="sentences of test2016")
    parser.add_argument("--batch", type=int, default=16, help="sentences translated at a time")
    parser.add_argument("--beams", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args(arguments)


def trained(data: Path, work: Path, plan: Plan) -> tuple[Tokenizer, Any]:
    """Return the vocabulary and the model, from a folder or after training there."""
    work.mkdir(parents=True, exist_ok=True)
    pairs, words = read_pairs(data, "train"), work / "vocabulary.json"
    if not words.exists():
        learn_vocabulary(pairs, plan.vocabulary).save(str(words))
    tokenizer = Tokenizer.from_file(str(words))
    held_out = encode_pairs(tokenizer, read_pairs(data, "val"))
    batches = [collate(held_out[first : first + 32]) for first in range(0, len(held_out), 32)]
    model = train(
        plan, encode_pairs(tokenizer, pairs), batches, work / "checkpoint.pt", lambda line: print(line, flush=True)
    )
    model.set_attn_implementation("sdpa")  # as transformers runs it by default
    return tokenizer, model


def quantized(model: Any, tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]], recipe: str) -> tuple[Generate, str]:
    """Return what generates by a recipe, from the artifact that it makes, and the artifact's size."""
    batch = collate(encode_pairs(tokenizer, pairs[:2]))
    inputs = {"input_ids": batch.ids, "attention_mask": batch.mask, "decoder_input_ids": batch.shifted}
    program = fxq.quantize(model, inputs, recipe=recipe)
    print(fxq.ledger(program).summary())
    with tempfile.TemporaryDirectory() as folder:
        path = fxq.save(program, Path(folder) / "artifact")
        size = sum(file.stat().st_size for file in path.iterdir())
        return fxq.load(path).generate, f"{size / 1e6:.1f} MB"


def translate(
    makers: Mapping[str, Generate], sources: Sequence[Sequence[int]], size: int, beams: int
) -> dict[str, Translations]:
    """Return what each model makes of the sources, those of like lengths together; all take turns at each batch."""
    said = {name: Translations() for name in makers}
    order = sorted(range(len(sources)), key=lambda number: len(sources[number]))
    for first in range(0, len(order), size):
        numbers = order[first : first + size]
        ids = padded([sources[number] for number in numbers])
        for name, generate in makers.items():
            add(said[name], generate, numbers, ids, beams)
    return said


def add(said: Translations, generate: Generate, numbers: Sequence[int], ids: Tensor, beams: int) -> None:
    """Translate a batch, and take down what was said and the time it took."""
    start = time.perf_counter()
    found = generate(
        input_ids=ids, attention_mask=(ids != PAD).long(), num_beams=beams, do_sample=False, max_new_tokens=LONGEST
    )
    said.seconds += time.perf_counter() - start
    found = found[:, 1:]  # the start's is no translation
    said.tokens += int((found != PAD).sum())
    said.rows.update(zip(numbers, found.tolist(), strict=True))


def show(
    said: Mapping[str, Translations], size: Mapping[str, str], tokenizer: Tokenizer, targets: Sequence[str], title: str
) -> None:
    """Print size, BLEU and tokens per second of each model."""
    bleu = {name: score(each, tokenizer, targets) for name, each in said.items()}
    rows = [
        (
            name,
            size[name],
            f"{bleu[name]:.2f}",
            f"{bleu[name] - bleu[FLOAT]:+.2f}",
            f"{each.tokens / each.seconds:.0f}",
            f"{said[FLOAT].seconds * each.tokens / (each.seconds * said[FLOAT].tokens):.2f}",
        )
        for name, each in said.items()
    ]
    heads = ("", "on disk", "BLEU", "of float's", "tokens/s", "times float's")
    common.show(f"{len(targets)} sentences of test2016, {title}", heads, rows)


def score(said: Translations, tokenizer: Tokenizer, targets: Sequence[str]) -> float:
    """Return sacrebleu's corpus BLEU."""
    texts = [tokenizer.decode(said.rows[number]) for number in range(len(targets))]
    return float(importlib.import_module("sacrebleu").corpus_bleu(texts, [list(targets)]).score)


if __name__ == "__main__":
    main()
