"""stories260K, a Llama of 260,032 parameters trained on TinyStories, in float32 and quantized: nats per token.

    python benchmarks/stories.py [--data DIR] [--limit 300] [--batch 10] [--threads 2]

The weights and the stories are those below --data (weights/stories260K, tinystories); the checkpoint of llama2.c
becomes a Llama of transformers here. Every figure is the mean over the tokens after the first of each story, at most
512 tokens of each; lower is better. The story is generated through the quantized graphs, by transformers' own code.
"""

import argparse
import gzip
import os
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import common
import torch
import transformers
from tabulate import tabulate
from torch import Tensor

import fxquant as fxq

BOS, CONTEXT = 1, 512
_BYTES = 3  # the id of byte 0
GROUPS = {
    "dtype": "int4",
    "granularity": "per-group",
    "group_size": 32,
    "symmetric": False,
    "observer": "least_squares",
}
EXTREMES = {"weight": {"observer": "minmax"}}
RECIPES: dict[str, str | fxq.Recipe] = {
    "int8 dynamic": "dynamic",
    "int4, scales by extremes": fxq.Recipe(name="int4-minmax", base="weight-only-int4", specs=EXTREMES),
    "int4 group-32 weight-only": "weight-only-int4",
    "the same, int4 head": fxq.Recipe(
        name="int4-head4",
        base="weight-only-int4",
        overrides=[fxq.Override(path="lm_head", specs={"weight": GROUPS})],
    ),
}


def main(arguments: list[str] | None = None) -> None:
    """Print nats per token, and a story."""
    args = parse(arguments)
    torch.set_num_threads(args.threads)
    weights, stories = args.data / "weights" / "stories260K", args.data / "tinystories" / "sample.txt.gz"
    missing = [path for path in (weights, stories) if not path.exists()]
    if missing:
        print(f"stories skipped: there is no {missing[0]} (--data, FXQUANT_DATA)")
        return
    common.quieten()
    print(common.machine())
    tokens = Tokenizer(weights / "tok512.bin")
    texts = [tokens.encode(text)[:CONTEXT] for text in read_stories(stories, args.limit)]
    print(f"{len(texts)} stories, {sum(map(len, texts))} tokens")
    model = read_llama(weights / "stories260K.bin")
    captured = fxq.capture_generation(model, next(batches(texts, 2)))
    rows = [("float32", nats(model, texts, args.batch), "")]
    for name, recipe in RECIPES.items():
        program = fxq.quantize(captured, None, recipe=recipe)
        rows.append((name, nats(program, texts, args.batch), f"{fxq.ledger(program).coverage:.1%}"))
    print(tabulate(rows, ("", "nats per token", "low-precision share"), floatfmt=".4f"))
    prompt = torch.tensor([tokens.encode("Once upon a time")])
    print(tokens.decode(program.generate(prompt, max_new_tokens=60, do_sample=False)[0].tolist()))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("FXQUANT_DATA", "../shared/data")))
    parser.add_argument("--limit", type=int, default=300, help="stories")
    parser.add_argument("--batch", type=int, default=10, help="stories at a time")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args(arguments)


def read_stories(path: Path, limit: int) -> list[str]:
    """Return the first stories of a file in which a mark ends each."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [text.strip() for text in file.read().split("<|endoftext|>")[:limit]]


class Tokenizer:
    """llama2.c's tokenizer: the pair that makes the best token is merged first; unknown characters are bytes."""

    def __init__(self, path: Path) -> None:
        data, place = path.read_bytes(), 4  # the length of the longest token comes first
        self.pieces: list[bytes] = []
        self.scores: list[float] = []
        while place < len(data):
            score, size = struct.unpack_from("<fi", data, place)
            self.pieces.append(data[place + 8 : place + 8 + size])
            self.scores.append(score)
            place += 8 + size
        self.ids = {piece: number for number, piece in enumerate(self.pieces)}
        self.words: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, the beginning's first."""
        # no token has a space inside, so words are merged apart
        words = re.findall(r" [^ ]*", f" {text}")
        return [BOS, *(token for word in words for token in self._word(word))]

    def _word(self, word: str) -> list[int]:
        if word not in self.words:
            self.words[word] = self._merged([token for character in word for token in self._character(character)])
        return self.words[word]

    def _character(self, character: str) -> list[int]:
        known = self.ids.get(character.encode())
        return [known] if known is not None else [byte + _BYTES for byte in character.encode()]

    def _merged(self, found: list[int]) -> list[int]:
        while True:
            pairs = [self.ids.get(self.pieces[a] + self.pieces[b]) for a, b in pairwise(found)]
            best = max((k for k in pairs if k is not None), key=self.scores.__getitem__, default=None)
            if best is None:
                return found
            place = pairs.index(best)
            found[place : place + 2] = [best]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, without the beginning."""
        parts = [bytes([k - _BYTES]) if _BYTES <= k < _BYTES + 256 else self.pieces[k] for k in ids if k != BOS]
        return b"".join(parts).decode(errors="replace").strip()


def read_llama(path: Path) -> Any:
    """Return the checkpoint of llama2.c as a Llama of transformers."""
    data = path.read_bytes()
    width, hidden, layers, heads, groups, vocabulary, context = struct.unpack_from("<7i", data)
    config = transformers.LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=hidden, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=groups, max_position_embeddings=context, rms_norm_eps=1e-5,
        tie_word_embeddings=True, bos_token_id=BOS, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    values = torch.frombuffer(bytearray(data[28:]), dtype=torch.float32)
    model = transformers.LlamaForCausalLM(config).eval()
    keys = groups * width // heads
    place = 0
    for name, shape in (
        ("model.embed_tokens", (vocabulary, width)),
        ("input_layernorm", (width,)),
        ("self_attn.q_proj", (width, width)),
        ("self_attn.k_proj", (keys, width)),
        ("self_attn.v_proj", (keys, width)),
        ("self_attn.o_proj", (width, width)),
        ("post_attention_layernorm", (width,)),
        ("mlp.gate_proj", (hidden, width)),
        ("mlp.down_proj", (width, hidden)),
        ("mlp.up_proj", (hidden, width)),
        ("model.norm", (width,)),
    ):
        paths = [name] if name.startswith("model.") else [f"model.layers.{layer}.{name}" for layer in range(layers)]
        turned = {"self_attn.q_proj": heads, "self_attn.k_proj": groups}.get(name)
        for each in paths:
            weight = values[place : place + torch.Size(shape).numel()].view(shape)
            place += weight.numel()
            model.get_submodule(each).weight.data = half_split(weight, turned) if turned else weight
    model.tie_weights()
    return model


def half_split(weight: Tensor, heads: int) -> Tensor:
    """Return rows of a projection for rotary positions on the halves of a head; llama2.c's are on adjacent pairs."""
    return weight.view(heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def batches(texts: Sequence[Sequence[int]], size: int) -> Iterator[dict[str, Tensor]]:
    """Yield texts, those of like lengths together, padded on the right."""
    ordered = sorted(texts, key=len)
    for first in range(0, len(ordered), size):
        some = [torch.tensor(text) for text in ordered[first : first + size]]
        ids = torch.nn.utils.rnn.pad_sequence(some, batch_first=True)
        lengths = torch.tensor([len(text) for text in some])
        yield {"input_ids": ids, "attention_mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long()}


@torch.no_grad()
def nats(model: Callable[..., Any], texts: Sequence[Sequence[int]], size: int) -> float:
    """Return the mean loss over every token after the first of a text."""
    total, count = 0.0, 0
    for batch in batches(texts, size):
        logits = model(**batch).logits[:, :-1]
        places = batch["attention_mask"][:, 1:].bool()
        loss = torch.nn.functional.cross_entropy(logits[places], batch["input_ids"][:, 1:][places], reduction="sum")
        total, count = total + float(loss), count + int(places.sum())
    return total / count


if __name__ == "__main__":
    main()
