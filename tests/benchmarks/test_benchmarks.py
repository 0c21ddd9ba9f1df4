"""Every script in benchmarks/ runs, on a tiny model where it takes one, and prints the tables that it promises."""

import re

import pytest
import torch


def row(text, name):
    """Return the first line of a table that begins with `name`."""
    found = re.search(rf"^{re.escape(name)}.*$", text, re.MULTILINE)
    assert found, f"no row {name!r} in:\n{text}"
    return found.group()


@pytest.fixture(scope="module")
def compared(printed, tiny, tmp_path_factory):
    """What minilm.py prints for a tiny model, without STS-B."""
    return printed(
        "minilm", "--quick", "--model", tiny, "--data", str(tmp_path_factory.mktemp("data")), "--threads", "1"
    )


def test_minilm_measures_and_proves_every_quick_row(compared):
    for name in ("float32 eager", "float32 oneDNN packed", "fxquant dynamic", "fxquant static", "fxquant weight-only"):
        assert row(compared, name).count(" ms ") == 4
    assert "FELL BACK" not in compared
    assert "STS-B skipped" in compared
    proof = compared.partition("Kernels in a profiler trace")[2]
    ran = re.search(r"fxquant dynamic \(int8\) at .*8×64.*: (.*)", proof)[1]
    assert sum(int(count) for count in re.findall(r"(\d+) × \S*(?:linear|_int_mm)", ran)) == 7, proof


def test_minilm_says_what_was_not_measured(compared):
    assert "not measured: takes a minute to compile" in row(compared, "PT2E x86 static, compile")


def test_minilm_keeps_a_peer_that_fails_apart(script, tiny, tmp_path, capsys, monkeypatch):
    def broken(material):
        raise RuntimeError("no such engine\nand more")

    minilm = script("minilm")
    monkeypatch.setitem(minilm.PEERS, "torch.ao dynamic, onednn", broken)
    options = ["--quick", "--model", tiny, "--data", str(tmp_path), "--threads", "1", "--peers", "torch.ao dynamic, o"]
    minilm.main(options)
    assert "not measured: RuntimeError: no such engine" in row(capsys.readouterr().out, "torch.ao dynamic, onednn")


def test_minilm_marks_an_int8_row_that_ran_in_float(script, tiny):
    minilm, peers = script("minilm"), script("peers")
    arguments = minilm.parse(["--quick", "--model", tiny])
    material, _ = minilm.prepare(arguments)
    claimed = peers.Peer(material.model, 1.0, peers.INTEGER)
    shapes = {"1×16": material.calibration[0]}
    assert "FELL BACK to float at 1×16" in minilm.verdict(claimed, minilm.trace(claimed, shapes))
    honest = peers.eager(material)
    assert minilm.verdict(honest, minilm.trace(honest, shapes)) == ""


def test_minilm_reads_gold_scores(script, tmp_path):
    import gzip

    folder = tmp_path / "stsb"
    folder.mkdir()
    with gzip.open(folder / "dev.tsv.gz", "wt", encoding="utf-8") as file:
        file.write('sentence1\tsentence2\tscore\nA "man.\tA cat.\t2.5\nOne.\tTwo.\t0.0\n')
    minilm = script("minilm")
    assert minilm.gold_pairs(tmp_path, 10) == [('A "man.', "A cat.", 2.5), ("One.", "Two.", 0.0)]
    assert len(minilm.gold_pairs(tmp_path, 1)) == 1
    assert minilm.gold_pairs(tmp_path / "elsewhere", 1) == []


def test_without_the_model_a_benchmark_says_what_to_install(script, monkeypatch):
    common = script("common")
    monkeypatch.setattr(common, "PACKAGE", "no_such_package_of_a_model")
    with pytest.raises(SystemExit, match="skipped: MiniLM is not installed"):
        common.load_model(None)


def test_weight_only_kernels_are_timed_against_others(script, capsys, monkeypatch):
    own = script("weight_only_candidates")
    monkeypatch.setattr(own, "FILL", 1 << 16)
    monkeypatch.setattr(script("memory"), "SOURCE", 'int main() { __builtin_printf("1e9"); }')
    script("weight_only_kernels").main(["--threads", "1", "--rounds", "1", "--rows", "1", "3", "--size", "64", "96"])
    out = capsys.readouterr().out
    assert "a plain read of memory: 1.0 GB/s" in out
    for name in (own.FLOAT, own.ONEDNN, own.HALF, own.TORCH_INT8, own.TORCH_INT4, *own.SPECS):
        row = rf"^ +64 +96 +[13]  {re.escape(name)} +(?:\d+\.\d+ *){{5}}$"
        assert len(re.findall(row, out, re.MULTILINE)) == 2, out


def test_weight_only_kernels_compare_one_product(script, monkeypatch):
    own = script("weight_only_candidates")
    monkeypatch.setattr(own, "FILL", 1)
    torch.manual_seed(0)
    x, weight = torch.randn(2, 128), torch.randn(64, 128) / 128**0.5
    monkeypatch.setattr(torch, "randn", lambda *_: weight * 128**0.5)
    for name, (multiply, (first, *_), _, dtype) in own.candidates(128, 64).items():
        near = torch.nn.functional.cosine_similarity(multiply(x.to(dtype), first).float(), x @ weight.t())
        assert near.min() > 0.98, name


def test_reading_memory_is_measured(script):
    memory = script("memory")
    assert 1e8 < memory.measure_reading(1) < 1e13
    assert memory.compiled_figures("no program").startswith("not measured: ")


def test_scaling_times_every_stage(script, tiny, capsys):
    script("scaling").main(["--quick", "--model", tiny, "--threads", "1"])
    out = capsys.readouterr().out
    head = row(out, "seconds ")
    for stage in ("capture", "prepare", "calibrate", "convert", "lower", "save", "load"):
        assert stage in head
    assert "below 10" in row(out, "MiniLM")
    assert len(row(out, "BERT-base, 2 layers").split()) == 3 + 8
    assert row(out, "1 → 2")


def test_scaling_profiles_a_size(script, capsys):
    script("scaling").main(["--quick", "--profile", "1", "--threads", "1"])
    out = capsys.readouterr().out
    assert "convert: seconds under cProfile" in out
    assert "passes/convert.py:" in out


@pytest.fixture(scope="module")
def agreed(printed, tiny):
    """What agreement.py prints for a tiny model."""
    return printed("agreement", "--quick", "--model", tiny, "--threads", "1")


def test_agreement_stays_within_a_step_an_op(agreed):
    tables = re.findall(r"worst first \(steps\)\n.*\n.*\n((?:\w.*\n)+)", agreed)
    assert len(tables) == 4
    largest = [float(line.split()[3]) for table in tables for line in table.splitlines()]
    assert max(largest) <= 1


def test_agreement_is_to_the_bit_where_linears_are_rounded_once(agreed):
    pairs = [line for line in agreed.splitlines() if re.match(r"Q/DQ, rounded once +reference, rounded once", line)]
    assert len(pairs) == 2
    assert all(line.endswith("8 of 8") for line in pairs)


def test_linear_kernels_can_be_imported(script):
    assert callable(script("linear_kernels").main)
