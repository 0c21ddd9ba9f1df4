"""benchmarks/cpu_decoders.py on a tiny model, without peers, and what it says of systems that fail."""

import json

import pytest
import torch

QUICK = ["--quick", "--models", "llama-512", "--batches", "2", "--threads", "1", "--peers", "none of them"]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("decoders")
    return folder / "figures.json", ["--json", str(folder / "figures.json"), "--work", str(folder)]


def test_decoders_are_timed_and_near_the_float_model(script, measured, capsys, monkeypatch):
    decoders, systems = script("cpu_decoders"), script("decoder_systems")
    path, options = measured

    def broken(context):
        raise ImportError("no such package\nat all")

    kept = {name: systems.SYSTEMS[name] for name in (systems.EAGER, "fxquant dynamic")}
    monkeypatch.setattr(decoders, "SYSTEMS", {**kept, "none of them": broken})
    decoders.main([*QUICK, *options])
    rows = {row["system"]: row for row in json.loads(path.read_text())["rows"]}
    assert rows["none of them"]["remark"] == "ImportError: no such package"
    for name in kept:
        assert len(rows[name]["prompts"]) == 1
        assert len(rows[name]["tokens"]) == 4
        assert rows[name]["cosine"] > 0.99
    assert rows["fxquant dynamic"]["limit"] is None or rows["fxquant dynamic"]["limit"] > 0
    printed = capsys.readouterr().out
    assert "llama-128, batch 2" in printed
    assert "none of them: ImportError: no such package" in printed


def test_what_is_read_for_a_token_leaves_out_tables(script, measured):
    models, systems = script("decoder_models"), script("decoder_systems")
    shape = models.small(models.SHAPES[0])
    context = systems.Context(shape, models.make(shape), measured[0].parent / models.digest(shape), 1)
    weights = sum(p.numel() for name, p in context.model.named_parameters() if "embed" not in name)
    system = systems.ours("dynamic")(context)
    assert weights < system.bytes < 1.2 * weights
    times = system.run(models.prompt(shape, 1, 8), 3)
    assert len(times.tokens) == 3


def test_the_flat_model_is_the_model(script):
    models, systems = script("decoder_models"), script("decoder_systems")
    model = models.make(models.small(models.SHAPES[2]))
    ids = models.prompt(models.small(models.SHAPES[2]), 2, 6)
    past = [torch.zeros(2, 2, 0, models.HEAD) for _ in range(4)]
    mask, places = torch.ones_like(ids), torch.arange(6).repeat(2, 1)
    with torch.no_grad():
        logits, *cache = models.Flat(model)(ids, mask, places, *past)
        expected = systems.Growing(model).start(ids)
    torch.testing.assert_close(logits[:, -1], expected)
    assert {tuple(each.shape) for each in cache} == {(2, 2, 6, models.HEAD)}
