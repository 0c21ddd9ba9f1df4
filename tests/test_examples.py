"""Every file in examples/ runs, as its reader would run it, and says what it promises."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from folders import write_bert, write_sentences

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(script, *arguments, folder):
    """Run an example in a process of its own, which starts in `folder`."""
    command = [sys.executable, EXAMPLES / script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """What the demo prints for a tiny model, a short text and few rounds; and where it ran."""
    folder = tmp_path_factory.mktemp("demo")
    model = write_bert(folder / "model")
    text = write_sentences(
        folder / "text.txt", [f"{a} {b} {c}." for a in "abcd" for b in "efgh" for c in ("one", "two")]
    )
    small = ("--text", text, "--sentences", 12, "--batches", 2, "--rounds", 2)
    done = run("minilm_demo.py", "--model", model, *small, folder=folder)
    return done, folder


def test_demo_ends_well(demo):
    done, _ = demo
    assert done.returncode == 0, done.stderr
    assert "USDT" not in done.stderr


def test_demo_prints_the_ledger(demo):
    done, _ = demo
    assert "linear_gelu" in done.stdout
    assert done.stdout.count("linear: 100.0% (7 of 7 ops)") == 2


def test_demo_shows_that_reloaded_artifacts_are_bit_identical(demo):
    done, folder = demo
    assert "int8 dynamic: outputs are bit-identical" in done.stdout
    assert "int8 static: outputs are bit-identical" in done.stdout
    assert (folder / "minilm-int8" / "dynamic" / "model.safetensors").is_file()
    assert (folder / "minilm-int8" / "static" / "model.safetensors").is_file()


def test_demo_compares_the_variants(demo):
    done, _ = demo
    table = done.stdout.partition("Comparison")[2]
    for name in ("float32", "int8 dynamic", "int8 static"):
        (row,) = re.findall(rf"^{name} +([\d.]+) MB +(.*)$", table, re.MULTILINE)
        assert float(row[0]) > 0
        assert len(re.findall(r"[\d.]+ ms \([\d.]+×\)", row[1])) == 3
        mean, minimum, _ = map(float, row[1].split()[-3:])
        assert 0.9 < minimum <= mean <= 1
    assert "cosine of 12 sentence embeddings" in table
    assert "static ranges from 16 other sentences" in table


def test_demo_proves_which_kernels_ran(demo):
    done, _ = demo
    proof = done.stdout.partition("kernels in a profiler trace")[2]
    assert re.search(r"float32: 7 × aten::linear", proof)
    for name in ("int8 dynamic", "int8 static"):
        line = next(line for line in proof.splitlines() if line.startswith(f"  {name}"))
        assert "embedding_int8" in line
        assert "aten::linear" not in line


# Runs commands one after the other as Python would, each in a folder of its own, and prints how they ended and what
# they showed: a process for each would import the libraries again.
ALL = """
import contextlib, io, json, os, runpy, sys, tempfile, traceback

found = []
for command in json.loads(sys.argv[1]):
    shown, code = io.StringIO(), 0
    sys.argv = command
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(shown):
        os.chdir(folder)
        try:
            runpy.run_path(command[0], run_name="__main__")
        except SystemExit as stop:
            code = stop.code or 0
        except Exception:
            code = traceback.format_exc()
        os.chdir("/")
    found.append([code, shown.getvalue()])
print(json.dumps(found))
"""
WRONG = [str(EXAMPLES / "minilm_demo.py"), "--text", "nothing.txt"]
PACKAGE = EXAMPLES / "third_party_backend"  # installed and tested by tests/backends/test_plugins.py
SCRIPTS = sorted(
    path for path in EXAMPLES.rglob("*.py") if path.name != "minilm_demo.py" and PACKAGE not in path.parents
)


@pytest.fixture(scope="module")
def ran():
    """How each script ended, 0 or its error, and what it showed; last, the demo for a text that there is not."""
    commands = json.dumps([*([str(path)] for path in SCRIPTS), WRONG])
    done = subprocess.run([sys.executable, "-c", ALL, commands], capture_output=True, text=True, check=True)
    return dict(zip([*SCRIPTS, "wrong"], json.loads(done.stdout), strict=True))


def test_demo_names_what_is_wrong(ran):
    code, _ = ran["wrong"]
    assert code.startswith("error: nothing.txt: there is no such file")


@pytest.mark.parametrize("script", SCRIPTS, ids=[path.stem for path in SCRIPTS])
def test_example_runs(script, ran):
    if script.stem == "transformers_quantizer":
        pytest.importorskip("transformers.exporters.quantizers", reason="transformers is older than 5.23")
    code, shown = ran[script]
    assert code == 0, code
    assert shown.strip(), "an example shows something"
