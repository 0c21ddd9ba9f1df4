"""The comparison of int8 encoders and the costs run on a tiny model; peers that are missing or fail are told apart."""

import importlib.util
import json
import re
import shutil

import pytest
import torch

QUICK = ["--quick", "--models", "minilm", "--threads", "1"]


@pytest.fixture
def encoders(script):
    return script("cpu_encoders")


@pytest.fixture
def tables(script):
    return script("encoder_tables")


@pytest.fixture(scope="module")
def subject(script, tiny):
    from pathlib import Path

    return script("encoder_models").load_subject("minilm", Path(tiny), sentences=16, batches=2, small=True)


@pytest.fixture(scope="module")
def context(script, subject, tmp_path_factory):
    return script("systems").Context(subject, tmp_path_factory.mktemp("systems"), 1)


def test_encoders_measures_a_model_without_peers(encoders, tiny, tmp_path, capsys):
    encoders.main([*QUICK, "--minilm", tiny, "--peers", "none such", "--json", str(tmp_path / "found.json")])
    out = capsys.readouterr().out
    rows = dict(re.findall(r"^(float32 eager|fxquant dynamic)  (.*)$", out, re.MULTILINE))
    assert len(re.findall(r"\d+\.\d\d  \d+\.\d\d / \d+\.\d\d", out)) == 3 * 2, "three systems, two cells of ≤ 64 tokens"
    assert set(rows) == {"float32 eager", "fxquant dynamic"}
    assert "FELL BACK" not in out
    assert "minilm: embedding cosine, mean" in out
    found = json.loads((tmp_path / "found.json").read_text())
    assert {row["cell"] for row in found["rows"] if row["timing"]} == {"1x16", "32x64"}
    assert all(row["timing"]["median"] > 0 for row in found["rows"] if row["timing"])
    assert {each["system"] for each in found["accuracy"]} >= {"float32 eager", "fxquant dynamic"}


def test_encoders_keeps_a_system_apart_that_cannot_be_made(encoders, context, monkeypatch):
    def broken(context):
        raise ImportError("No module named 'fastest'\nand more")

    monkeypatch.setattr(encoders, "SYSTEMS", {"fastest int8": broken})
    systems, missing = encoders.build(encoders.parse([*QUICK, "--peers", "fastest"]), context)
    assert systems == {}
    assert missing == {"fastest int8": "ImportError: No module named 'fastest'"}


def test_encoders_keeps_a_system_apart_that_fails_in_a_cell(encoders, script, subject):
    def fails(**batch):
        raise ValueError("batch too large")

    system = script("systems").System
    systems = {"good": system(lambda **batch: None), "bad": system(fails)}
    bad, good = encoders.in_cell(encoders.parse(QUICK), subject, script("encoder_models").Cell(1, 16), systems)
    assert (bad.system, bad.timing, bad.remark) == ("bad", None, "ValueError: batch too large")
    assert good.system == "good"
    assert good.counts


def test_a_system_for_ragged_batches_has_no_row_elsewhere(encoders, script, subject):
    models, system = script("encoder_models"), script("systems").System
    systems = {"zero": system(lambda **batch: None, where="ragged")}
    args = encoders.parse(QUICK)
    assert encoders.in_cell(args, subject, models.Cell(4, 16), systems) == []
    assert [row.system for row in encoders.in_cell(args, subject, models.Cell(4, 16, ragged=True), systems)] == ["zero"]


def timed(tables, system, seconds, remark="", cell="8x128"):
    timing = None if seconds is None else tables.Timing(seconds, seconds, seconds, 1)
    return tables.Row("minilm", cell, system, timing, remark)


def test_a_row_that_fell_back_is_marked_and_not_averaged(tables, capsys):
    rows = [timed(tables, "float32 eager", 1.0), timed(tables, "fxquant dynamic", 0.1)]
    rows += [timed(tables, "OpenVINO int8", 0.2), timed(tables, "ORT int8 static", 0.05, "3 linear layers in float")]
    assert tables.ratios(rows, "OpenVINO int8") == {("minilm", "8x128"): pytest.approx(2)}
    assert tables.ratios(rows, "ORT int8 static") == {}
    tables.show_latency("minilm", rows)
    out = capsys.readouterr().out
    assert re.search(r"ORT int8 static +50\.00 +20\.00 FELL BACK", out), out
    assert "ORT int8 static at 8x128: fell back: 3 linear layers in float" in out


def test_the_best_of_both_ort_builds_counts_in_each_cell(tables, capsys):
    rows = [timed(tables, "fxquant dynamic", 1.0), timed(tables, "fxquant dynamic", 1.0, cell="1x16")]
    rows += [timed(tables, "ORT int8 dynamic", 2.0), timed(tables, "ORT int8 static", 3.0)]
    rows += [timed(tables, "ORT int8 dynamic", 1.6, cell="1x16"), timed(tables, "ORT int8 static", 1.2, cell="1x16")]
    assert list(tables.ratios(rows, tables.BEST_ORT).values()) == pytest.approx([2.0, 1.2])
    tables.show_ratios(rows)
    tables.show_goals(rows, [tables.Accuracy("minilm", "fxquant dynamic", 0.9985, 0.995, 3)])
    out = capsys.readouterr().out
    assert re.search(r"best ORT int8 +2 +1\.55 +1\.20 minilm 1x16", out), out
    assert "MISSED times faster than best ORT int8, every cell: 1.2, goal 1.5" in out
    assert "met    minilm: embedding cosine, mean: 0.9985" in out
    assert "MISSED minilm: embedding cosine, minimum: 0.995" in out


def test_a_float_model_that_claims_int8_is_found_out(script, subject):
    systems, cell = script("systems"), script("encoder_models").Cell(1, 16)
    with torch.no_grad():
        assert systems.traced(subject.model)(subject.batch(cell)) == "no integer product ran"


def test_an_int8_model_with_linears_in_float_is_found_out(script, context):
    systems, cell = script("systems"), script("encoder_models").Cell(1, 16)
    honest = systems.dynamic(context)

    def partly(**batch):
        return context.subject.model.pooler(honest.call(**batch).last_hidden_state)

    with torch.no_grad():
        assert honest.fell_back(context.subject.batch(cell)) == ""
        assert systems.traced(partly)(context.subject.batch(cell)) == "1 × aten::linear"


def test_ragged_batches_are_filled_to_55_percent(script, subject):
    models = script("encoder_models")
    ragged = next(cell for cell in models.CELLS if cell.ragged)
    assert sum(ragged.lengths()) / (ragged.size * ragged.tokens) == pytest.approx(0.55, abs=0.005)
    batch = subject.batch(models.Cell(8, 64, ragged=True))
    assert batch["attention_mask"].sum(1).tolist() == models.Cell(8, 64, ragged=True).lengths()
    assert (batch["input_ids"][batch["attention_mask"] == 0] == 0).all()


def test_operations_are_those_that_torch_counts(script, subject):
    from torch.utils.flop_counter import FlopCounterMode

    models, systems = script("encoder_models"), script("systems")
    cell = models.Cell(3, 20)
    with torch.no_grad(), systems.attention(subject.model, "eager"), FlopCounterMode(display=False) as counter:
        subject.model(**subject.batch(cell))
    counted = {str(op): count for op, count in counter.get_flop_counts()["Global"].items()}
    linear, attention = models.operations(subject.config, cell)
    assert counted.pop("aten.bmm") == attention
    assert sum(counted.values()) == linear


def test_every_system_has_its_turns(script):
    turns, seen = script("turns"), []
    found = turns.take_turns({"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}, 2, 0.0)
    assert [found[name].calls for name in "ab"] == [2 * turns.MOST_CALLS] * 2
    order = re.sub(r"(.)\1+", r"\1", "".join(seen))
    assert order == "ababa", "one call each to know how long it takes, then the rounds, the second one turned"
    assert found["a"].low <= found["a"].median <= found["a"].high


def test_peaks_are_measured_or_explained(script, monkeypatch):
    peaks = script("peaks")
    found = peaks.measure_peaks(1)
    if isinstance(found, peaks.Peaks):
        assert found.int8 > found.float32 / 2 > 1e9
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert peaks.measure_peaks(1) == "peaks not measured: there is no C++ compiler"


@pytest.mark.parametrize(
    ("package", "name"),
    [
        ("nncf", "OpenVINO int8"),
        ("nncf", "OpenVINO int8, fixed shapes"),
        ("onnxruntime", "ORT int8 dynamic"),
        ("onnxruntime", "ORT int8 static"),
        ("ctranslate2", "CTranslate2 int8"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_peer_computes_the_model_in_int8(package, name, script, context):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}")
    system = script("systems").SYSTEMS[name](context)
    batch = context.calibration[0]
    with torch.no_grad():
        expected = context.subject.model(**batch).last_hidden_state[batch["attention_mask"] == 1]
        found = system.call(**batch).last_hidden_state[batch["attention_mask"] == 1]
    assert torch.nn.functional.cosine_similarity(expected, found, dim=-1).min() > 0.97
    assert system.fell_back(batch) == ""


def test_costs_are_taken_in_processes_of_their_own(script, tiny, tmp_path, capsys):
    tables = ["--tables", "seconds", "--length", "32", "--json", str(tmp_path / "found.json")]
    script("cpu_costs").main([*QUICK, "--folder", tiny, *tables])
    out = capsys.readouterr().out
    assert "below 5" in out
    found = json.loads((tmp_path / "found.json").read_text())["minilm"]
    assert set(found["seconds"]) == {"capture", "prepare", "convert", "lower", "first call"}


def test_latencies_and_memory_of_an_artifact(script, context, tmp_path):
    import fxquant as fxq

    captured = context.subject.material.captured
    path = fxq.save(fxq.lower(script("common").convert(captured, "dynamic", ())), tmp_path / "artifact")
    spec = {"threads": torch.get_num_threads(), "path": str(path), "rounds": 1, "seconds": 0.0}
    found = script("cost_roles").latencies(spec | {"shapes": [(1, 16), (3, 8)]})
    assert set(found) == {"1x16", "3x8"}
    assert min(found.values()) > 0
    found = script("cost_roles").memory_of_fxquant(spec | {"shape": (3, 8)})
    assert 50 < found["imported"] <= found["loaded"] <= found["peak"]
