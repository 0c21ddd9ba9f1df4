"""A part of the zoo, and the page that is made of it."""

import json

import pytest

NAMES = [
    "distilbert", "mpnet", "deberta_v2", "squeezebert", "gpt2", "bloom", "gemma2", "falcon", "mixtral", "t5", "marian",
    "vit", "convnext", "data2vec_audio", "nn.MultiheadAttention",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_captured_equal_and_quantized(script, name):
    zoo = script("zoo")
    (specimen,) = zoo.specimens([name])
    result = zoo.measure(specimen, attention=False)
    assert not result.failure
    assert result.rung == "own attention"
    assert set(result.equal.values()) == {"="} and len(result.equal) == 5
    assert result.linear_coverage == 1.0
    assert all(reason.startswith("float-by-rule") for reason in result.reasons)
    assert result.sqnr > 25


def test_zoo_is_large_and_its_page_tells_what_failed(script, tmp_path):
    zoo = script("zoo")
    names = [each.name for each in zoo.specimens()]
    assert len(names) == len(set(names)) >= 70
    good, bad = zoo.Result("bert", "encoder", "own attention", sqnr=20.0), zoo.Result("x", "y", failure="Error: why")
    page = zoo.page([vars(good), vars(bad)], "a machine")
    assert "captured: 1 of 2" in page and "- x: Error: why" in page and "- bert, 20.0 dB: not explained" in page
    file = tmp_path / "results.jsonl"
    file.write_text("\n".join(json.dumps(vars(each)) for each in (good, bad)))
    zoo.main(["--read", str(file), "--output", str(tmp_path / "zoo.md")])
    assert "captured: 1 of 2" in (tmp_path / "zoo.md").read_text()
