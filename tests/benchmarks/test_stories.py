import os
import re
import struct
from pathlib import Path

import pytest
import torch

DATA = Path(os.environ.get("FXQUANT_DATA", "../shared/data"))
PIECES = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{byte:02X}>" for byte in range(256)), " ", "a", "b", " a", "ab", " ab"]


@pytest.fixture
def tokenizer(script, tmp_path):
    """A tokenizer of the characters a and b, of which `ab` is merged before ` a`."""
    scores = {" ab": -1.0, "ab": -2.0, " a": -3.0}
    body = b"".join(struct.pack("<fi", scores.get(p, 0.0), len(p.encode())) + p.encode() for p in PIECES)
    (tmp_path / "tok.bin").write_bytes(struct.pack("<i", 7) + body)
    return script("stories").Tokenizer(tmp_path / "tok.bin")


def test_without_data_it_says_what_is_missing(script, tmp_path, capsys):
    script("stories").main(["--data", str(tmp_path)])
    missing = tmp_path / "weights" / "stories260K"
    assert capsys.readouterr().out == f"stories skipped: there is no {missing} (--data, FXQUANT_DATA)\n"


def test_best_pairs_are_merged_first_and_unknown_characters_are_bytes(tokenizer):
    first = PIECES.index(" ")
    assert tokenizer.encode("ab b") == [1, first + 5, first, first + 2]
    assert tokenizer.encode("é") == [1, first, 0xC3 + 3, 0xA9 + 3]
    assert tokenizer.decode(tokenizer.encode("ab é b")) == "ab é b"


def test_rows_of_a_head_are_turned_from_pairs_to_halves(script):
    weight = torch.arange(8.0)[:, None]
    assert script("stories").half_split(weight, 2).flatten().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@pytest.mark.skipif(not (DATA / "weights" / "stories260K").exists(), reason=f"no stories260K below {DATA}")
def test_figures_of_some_stories(script, capsys):
    script("stories").main(["--data", str(DATA), "--limit", "4", "--threads", "1"])
    text = capsys.readouterr().out
    loss, int8, int4 = (
        float(re.search(rf"^{name}.*? (\d\.\d{{4}})", text, re.MULTILINE)[1]) for name in ("float32", "int8", "int4")
    )
    assert 1.0 < loss < 1.7
    assert abs(int8 - loss) < 0.01 and 0 < int4 - loss < 0.25
    assert "Once upon a time" in text
