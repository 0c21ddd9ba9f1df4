import csv
import gzip
import importlib.util
import random
import re
from dataclasses import replace

import pytest
import torch

WORDS = {"a": "ein", "man": "Mann", "dog": "Hund", "sees": "sieht", "the": "den", "red": "roten", "ball": "Ball"}
SENTENCES = [f"{first} {who} sees the {what}." for first in ("a", "the") for who in ("man", "dog", "red dog", "red man")
             for what in ("ball", "man", "dog", "red ball")]  # fmt: skip
PAIRS = [(text, re.sub(r"\w+", lambda word: WORDS[word[0]], text)) for text in SENTENCES]


@pytest.fixture
def modules(script):
    return script("translation"), script("translation_data"), script("translation_training")


@pytest.fixture
def plan(modules):
    return modules[2].Plan(vocabulary=60, width=64, layers=1, epochs=2, cosine=3, tokens=64, dropout=0.1)


@pytest.fixture
def data(tmp_path):
    """A folder like that of Multi30k."""
    (tmp_path / "multi30k").mkdir()
    for split, pairs in (("train", PAIRS), ("val", PAIRS[:5]), ("test2016", PAIRS[5:9])):
        with gzip.open(tmp_path / "multi30k" / f"{split}.tsv.gz", "wt", encoding="utf-8", newline="") as file:
            csv.writer(file, delimiter="\t", lineterminator="\n").writerows([("en", "de"), *pairs])
    return tmp_path


def same(left, right):
    return all(torch.equal(a, b) for a, b in zip(left.parameters(), right.parameters(), strict=True))


def test_without_data_it_says_what_is_missing(script, tmp_path, capsys):
    script("translation").main(["--data", str(tmp_path)])
    assert (
        capsys.readouterr().out == f"translation skipped: there is no {tmp_path / 'multi30k'} (--data, FXQUANT_DATA)\n"
    )


def test_words_are_spelled_and_put_together_again(modules):
    _, data, _ = modules
    tokenizer = data.learn_vocabulary(PAIRS, 60)
    ids = data.encode(tokenizer, [PAIRS[7][1]])[0]
    assert ids[-1] == data.END and data.UNKNOWN not in ids
    assert tokenizer.decode([*ids, data.PAD]) == PAIRS[7][1]


def test_an_epoch_holds_every_pair_once_in_batches_of_limited_size(modules):
    _, data, _ = modules
    pairs = data.encode_pairs(data.learn_vocabulary(PAIRS, 60), PAIRS)
    batches = list(data.epoch(pairs, 64, random.Random(0)))
    found = [
        (ids[ids != data.PAD].tolist(), wanted[wanted != data.PAD].tolist())
        for batch in batches
        for ids, wanted in zip(batch.ids, batch.wanted, strict=True)
    ]
    assert sorted(found) == sorted(pairs)
    assert all(max(batch.ids.numel(), batch.wanted.numel()) <= 64 for batch in batches) and len(batches) > 3
    assert torch.equal(batches[0].shifted[:, 1:], batches[0].wanted[:, :-1])
    assert (batches[0].shifted[:, 0] == data.PAD).all()
    again = list(data.epoch(pairs, 64, random.Random(0)))
    assert all(torch.equal(one.ids, other.ids) for one, other in zip(batches, again, strict=True))


def test_the_learning_rate_rises_and_falls(modules):
    _, _, training = modules
    plan = training.Plan(epochs=8, cosine=10, warmup=1.0, peak=2.0)
    rates = [training.rate(plan, step, 100) for step in (0, 50, 100, 550, 1000)]
    assert rates == pytest.approx([0, 1, 2, 1, 0], abs=1e-9)


def test_a_run_continues_as_if_it_had_not_stopped(modules, plan, data):
    translation = modules[0]
    whole = translation.trained(data, data / "whole", plan)[1]
    _, first = translation.trained(data, data / "parts", replace(plan, epochs=1))
    _, rest = translation.trained(data, data / "parts", plan)
    assert same(whole, rest) and not same(whole, first)
    assert same(whole, translation.trained(data, data / "whole", plan)[1]), "trained again"
    with pytest.raises(SystemExit, match="was trained by another plan"):
        translation.trained(data, data / "whole", replace(plan, peak=1.0))


def test_models_take_turns_and_their_rows_are_put_in_order(modules, plan, data, capsys):
    translation, words, training = modules
    tokenizer = words.learn_vocabulary(PAIRS, plan.vocabulary)
    model = training.start(plan).model.eval()
    sources = words.encode(tokenizer, [source for source, _ in PAIRS[3:8]])
    turns = []

    def generate(**inputs):
        turns.append(inputs["input_ids"].shape[0])
        return model.generate(**inputs)

    said = translation.translate({translation.FLOAT: model.generate, "other": generate}, sources, 2, 2)
    assert turns == [2, 2, 1]
    assert said["other"].rows == said[translation.FLOAT].rows and said["other"].tokens == said[translation.FLOAT].tokens
    for number, source in enumerate(sources):
        alone = translation.translate({"alone": model.generate}, [source], 1, 2)["alone"].rows[0]
        found = said["other"].rows[number]
        assert found[: len(alone)] == alone and set(found[len(alone) :]) <= {words.PAD}
    if importlib.util.find_spec("sacrebleu") is not None:
        sizes = dict.fromkeys(said, "1 MB")
        translation.show(said, sizes, tokenizer, [target for _, target in PAIRS[3:8]], "tiny")
        assert "+0.00" in capsys.readouterr().out
