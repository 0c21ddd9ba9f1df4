import hashlib
import json
import subprocess
import sys

import pytest

from fxquant.errors import DataError
from fxquant.evaluation.text import read_sentences, split_sentences, standard_library_sentences


def test_standard_library_gives_enough_distinct_prose():
    sentences = standard_library_sentences()
    assert len(sentences) > 1500
    assert len({sentence.casefold() for sentence in sentences}) == len(sentences)
    assert all(5 <= len(sentence.split()) <= 60 for sentence in sentences)
    assert all(sentence[0].isupper() and sentence[-1] in ".!?" for sentence in sentences)
    assert not any(mark in sentence for sentence in sentences for mark in (">>>", "::", "\n", "`", "_"))


ANOTHER = """
import hashlib, json, sys
from fxquant.evaluation.text import standard_library_sentences

digest = hashlib.sha256("|".join(standard_library_sentences()).encode()).hexdigest()
print(json.dumps([digest, [name for name in ("turtle", "nntplib", "ftplib") if name in sys.modules]]))
"""


@pytest.fixture(scope="module")
def another():
    """What another process finds: the digest of the sentences, and modules that were run and should not be."""
    command = [sys.executable, "-c", ANOTHER]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"})
    return json.loads(done.stdout)


def test_standard_library_sentences_are_the_same_in_another_process(another):
    assert another[0] == hashlib.sha256("|".join(standard_library_sentences()).encode()).hexdigest()


def test_reading_the_standard_library_runs_none_of_it(another):
    assert another[1] == []


def test_read_sentences_strips_drops_blanks_and_repetitions(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes("\ufeffOne two.\r\n\r\n  Drei vier fünf. \none TWO.\n".encode())
    assert read_sentences(path) == ("One two.", "Drei vier fünf.")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "there is no such file"),
        (b"", "is empty; expected one sentence a line"),
        (b" \n\n\t\n", "is empty"),
        (b"PK\x03\x04\x00\x01", "is a binary file .a zero byte at 4."),
        ("Grüße".encode("latin-1"), r"is no UTF-8 text \(byte 2\)"),
    ],
    ids=["missing", "empty", "blank", "binary", "latin-1"],
)
def test_read_sentences_names_what_is_wrong(tmp_path, content, text):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=f"text.txt: {text}"):
        read_sentences(path)


def test_read_sentences_refuses_a_folder(tmp_path):
    with pytest.raises(DataError, match="is a directory"):
        read_sentences(tmp_path)


@pytest.mark.parametrize("held_out", [1, 3, 7, 9])
def test_split_is_disjoint_and_complete(held_out):
    sentences = tuple(map(str, range(10)))
    rest, chosen = split_sentences(sentences, held_out)
    assert len(chosen) == held_out
    assert sorted(rest + chosen, key=int) == list(sentences)


def test_split_spreads_over_the_text():
    _, chosen = split_sentences(tuple(map(str, range(100))), 4)
    assert chosen == ("0", "25", "50", "75")


def test_split_needs_more_than_it_holds_out():
    with pytest.raises(DataError, match="3 different sentences; 3 to evaluate with, and some more"):
        split_sentences(("a", "b", "c"), 3)
