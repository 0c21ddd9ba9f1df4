"""The comparison on GPUs: refused without one, and run dry on tiny models; which figures count for which goal."""

import re

import pytest
import torch


@pytest.fixture
def gpu(script):
    return script("gpu")


def test_without_a_gpu_it_leaves_with_a_message(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=r"needs an NVIDIA GPU, and torch finds none here\. --dry-run runs all of it"):
        gpu.main([])


def test_a_dry_run_has_every_table_and_keeps_nothing(gpu, script, monkeypatch, tmp_path, capsys):
    systems = script("gpu_systems")
    monkeypatch.setattr(systems, "ENCODERS", systems.ENCODERS[1:])
    ways = {name: systems.WAYS[name] for name in (systems.EAGER, systems.BF16, "fxquant fp8")}
    monkeypatch.setattr(gpu, "WAYS", ways)
    gpu.main(["--dry-run", "--results", str(tmp_path / "results")])
    out = capsys.readouterr().out
    assert "a dry run, whose figures mean nothing" in out
    assert re.search(r"RoBERTa-base 32×256: median ms, times faster than float32 eager, least cosine", out)
    assert re.search(r"^fxquant fp8 +\d+\.\d{3} +\d+\.\d\d +[01]\.\d{4}$", out, re.MULTILINE)
    assert "bfloat16, compile: not measured: RuntimeError: takes minutes to compile; left out of a dry run" in out
    assert re.search(r"^64×128 +128 +\d+\.\d\d +\d+ +\d+%$", out, re.MULTILINE)
    assert re.search(r"^fxquant weight-only-int4 +\d+\.\d{3} +–$", out, re.MULTILINE)
    assert "no judgement: RoBERTa-base 32×256: the best of ours, times faster than float32 without TF32" in out
    assert "MISSED" not in out
    assert not (tmp_path / "results").exists()


def test_the_best_of_ours_counts_against_the_best_of_others(script, capsys):
    tables = script("gpu_tables")
    seconds = {"float32 eager": 9.0, "bfloat16, compile": 3.0, "float16, compile": 2.8, "fxquant fp8": 2.0,
               "fxquant static": 1.8, "torchao int8 dynamic, compile": 2.5}  # fmt: skip
    rows = [tables.Row("BERT", way, tables.Timing(each, each, each, 1)) for way, each in seconds.items()]
    rows.append(tables.Row("BERT", "torchao fp8 dynamic, compile", remark="ImportError: no torchao"))
    tables.show("BERT", rows, "float32 eager")
    tables.show_goals(rows, tables.GOALS, dry=False)
    out = capsys.readouterr().out
    assert re.search(r"fxquant static +1800\.000 +5\.00", out)
    assert "met    BERT: the best of ours, times faster than torch.compile in half precision: 1.56, goal 1.4" in out
    assert "met    BERT: the best of ours, times faster than torchao, 8 bits: 1.39, goal 1.15" in out
    assert "met    BERT: the best of ours, times faster than float32 without TF32: 5, goal 4.5" in out
    assert "torchao fp8 dynamic, compile: not measured: ImportError: no torchao" in out
    tables.show_goals(rows[:1], tables.GOALS, dry=False)
    assert capsys.readouterr().out == "", "without figures nothing is said"
    slow = tables.Row("BERT", "fxquant fp8", tables.Timing(2.5, 2.5, 2.5, 1))
    tables.show_goals([rows[1], slow], tables.GOALS, dry=False)
    assert "MISSED BERT: the best of ours, times faster than torch.compile in half precision: 1.2" in (
        capsys.readouterr().out
    )


def test_bandwidth_counts_what_is_read_and_written(script):
    products, machine = script("gpu_products"), script("gpu_machine").find(True)
    product = products._product(machine, 64, 128, 32)
    # 128 rows of 64 values of 4 bits, and of two groups with a scale and a zero point; 64 + 128 numbers of 16 bits.
    assert product.bytes == 128 * 64 // 2 + 128 * 2 * (4 + 1) + 2 * (64 + 128)
    assert product.bandwidth == product.bytes / product.seconds


def test_the_compiled_model_reads_what_it_is_told(script):
    decoding, machine = script("gpu_decoding"), script("gpu_machine").find(True)
    model = decoding.llama(machine, torch.float32)
    steps = decoding.Compiled(model, 16)
    steps.fast = model  # as compiling takes minutes
    ids = decoding.prompt(machine, 300)
    with torch.no_grad():
        steps.start(ids.flip(1))
        steps.step(ids[:, :1])
        found = [steps.start(ids[:, :5]), steps.step(ids[:, 5:6]), steps.step(ids[:, 6:7])]
        expected = model(input_ids=ids[:, :7]).logits[:, 4:]
    torch.testing.assert_close(torch.stack(found, 1), expected, rtol=1e-4, atol=1e-4)
