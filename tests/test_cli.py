"""The command line from end to end, on a tiny BERT in a folder."""

import contextlib
import io
import json
import runpy
import subprocess
import sys

import pytest
import torch
from folders import SENTENCES, write_bert, write_gpt2, write_sentences

import fxquant as fxq
from fxquant.cli import main
from fxquant.commands import compare as compare_command
from fxquant.commands import explain as explain_command
from fxquant.commands import quantize as quantize_command
from fxquant.errors import ArtifactError
from fxquant.evaluation.pretrained import load_pretrained
from fxquant.kernels.devices import DEVICES, Device


@pytest.fixture(scope="module", autouse=True)
def _captured_once():
    """What one command has captured is not captured again by the next, as that takes most of the time of each."""
    kept = {}

    def once(capture):
        def captured(model, inputs):
            weights = [(name, float(tensor.double().sum())) for name, tensor in model.state_dict().items()]
            key = str((capture.__name__, type(model), weights, inputs))
            if key not in kept:
                kept[key] = capture(model, inputs)
            return kept[key]

        return captured

    with pytest.MonkeyPatch.context() as patch:
        for module in (quantize_command, explain_command, compare_command):
            for name in {"capture_any", "capture", "capture_generation"} & vars(module).keys():
                patch.setattr(module, name, once(getattr(module, name)))
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_bert(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def artifact(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("artifact")
    assert main(["quantize", str(model), str(folder)]) == 0
    return folder


def run(capsys, *arguments):
    """Return the exit status and what was written to standard output and error."""
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_dynamic_needs_no_text(model, tmp_path, capsys):
    status, out, err = run(capsys, "quantize", model, tmp_path / "out")
    assert (status, err) == (0, "")
    assert "linear: 100.0% (7 of 7 ops)" in out
    assert "(planned)" not in out
    assert f"saved {tmp_path / 'out'} (0.1 MB)" in out


def test_the_artifact_computes_what_quantize_does(model, artifact):
    pretrained = load_pretrained(model)
    inputs = pretrained.example_inputs()
    expected = fxq.quantize(pretrained.model, inputs, backend="x86", recipe="dynamic")
    batch = pretrained.batch(SENTENCES[:3])
    assert torch.equal(fxq.load(artifact)(**batch)[0], expected(**batch)[0])


def test_static_uses_the_text(model, tmp_path, capsys):
    text = write_sentences(tmp_path / "text.txt")
    out_dir = tmp_path / "out"
    status, out, _ = run(
        capsys, "quantize", model, out_dir, "--recipe", "static", "--calibration", text, "--batches", 2
    )
    assert status == 0
    assert "saved" in out
    pretrained = load_pretrained(model)
    batches = pretrained.batches(SENTENCES[:16])
    inputs = pretrained.example_inputs()
    expected = fxq.quantize(pretrained.model, inputs, backend="x86", recipe="static", calibration=batches)
    assert torch.equal(fxq.load(out_dir)(**batches[0])[0], expected(**batches[0])[0])


def test_text_that_is_not_needed_is_remarked(model, tmp_path, capsys):
    text = write_sentences(tmp_path / "text.txt")
    _, out, _ = run(capsys, "quantize", model, tmp_path / "out", "--calibration", text)
    assert "note: no range of this recipe is found by calibration, so the text was not used" in out


def test_padding_is_left_out_where_asked(model, tmp_path, capsys):
    assert run(capsys, "quantize", model, tmp_path / "out", "--padded-outputs", "zero")[0] == 0
    zero, exact = (fxq.load(tmp_path / "out", padded_outputs=choice) for choice in (None, "exact"))
    batch = load_pretrained(model).batch(SENTENCES[:3])
    live = batch["attention_mask"].bool()
    assert not live.all()
    assert torch.equal(zero(**batch)[0][live], exact(**batch)[0][live])
    assert not zero(**batch)[0][~live].any()
    status, out, err = run(capsys, "compare", model, tmp_path / "out", "--json")
    assert (status, err) == (0, "")
    assert json.loads(out)["outputs"][0]["cosine"] > 0.9, "compared as exact: zeros are no error"


def test_random_weights_are_remarked(model, tmp_path, capsys):
    _, out, _ = run(capsys, "quantize", model, tmp_path / "out", "--task", "sequence-classification")
    assert "note: the checkpoint lacks these weights, which are random: classifier.bias, classifier.weight" in out


def test_an_artifact_is_replaced(model, tmp_path, capsys):
    out_dir = tmp_path / "out"
    assert run(capsys, "quantize", model, out_dir)[0] == 0
    assert run(capsys, "quantize", model, out_dir, "--backend", "reference")[0] == 0
    _, out, _ = run(capsys, "explain", out_dir)
    assert "fxquant.linear_dynamic_int8" in out or "fxquant.linear_int8" in out
    assert "x86" not in out


def test_explain_a_model_states_a_plan(model, capsys):
    status, out, _ = run(capsys, "explain", model, "--recipe", "static")
    assert status == 0
    assert "linear_int8 (planned)" in out
    assert "encoder.layer.0.intermediate.dense" in out
    assert "float-by-rule: one fused float kernel" in out
    assert "low-precision share of multiply-accumulates (planned):" in out


def test_explain_an_artifact_states_what_runs(artifact, capsys):
    _, out, _ = run(capsys, "explain", artifact)
    assert "(planned)" not in out
    assert "fxquant.packed_linear" in out
    assert "moves-data: moves values" not in out


def test_explain_all_lists_every_op(artifact, capsys):
    _, out, _ = run(capsys, "explain", artifact, "--all")
    assert "moves-data: moves values" in out
    assert "aten.layer_norm" in out


def test_explain_an_artifact_for_another_backend(artifact, capsys):
    _, out, _ = run(capsys, "explain", artifact, "--backend", "reference")
    assert "x86" not in out
    assert "linear: 100.0% (7 of 7 ops)" in out


def test_explain_as_json(artifact, capsys):
    data = json.loads(run(capsys, "explain", artifact, "--json")[1])
    assert data["stage"] == "lowered"
    assert sum(row["op"].startswith("linear") for row in data["rows"]) == 7


def test_compare_shows_layers_and_outputs(model, artifact, capsys):
    status, out, _ = run(capsys, "compare", model, artifact, "--limit", 3)
    assert status == 0
    layers, _, outputs = out.partition("\n\n")
    assert len(layers.splitlines()) == 2 + 3 + 1
    assert "last_hidden_state" in outputs
    decibels = [float(line.split()[-2]) for line in layers.splitlines()[2:5]]
    assert decibels == sorted(decibels)
    assert all(10 < each < 60 for each in decibels)


def test_compare_with_a_text_as_json(model, artifact, tmp_path, capsys):
    text = write_sentences(tmp_path / "text.txt", SENTENCES[:10])
    data = json.loads(run(capsys, "compare", model, artifact, "--text", text, "--json")[1])
    assert data["batches"] == 2
    pretrained = load_pretrained(model)
    reference = fxq.capture(pretrained.model, pretrained.example_inputs())
    found = fxq.compare(reference, fxq.load(artifact), pretrained.batches(SENTENCES[:10]))
    assert data == json.loads(found.to_json())


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """A causal LM's folder, what quantize made of it, and what it said."""
    folder = write_gpt2(tmp_path_factory.mktemp("gpt2"))
    made, said = tmp_path_factory.mktemp("gpt2-artifact"), io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main(["quantize", str(folder), str(made)]) == 0
    return folder, made, said.getvalue()


def test_a_causal_lm_becomes_an_artifact_that_generates(gpt2):
    folder, made, said = gpt2
    assert f"generates: fxquant.load('{made}').generate(input_ids=...)" in said
    assert "linear: 100.0% (5 of 5 ops)" in said
    pretrained = load_pretrained(folder)
    expected = fxq.quantize(pretrained.model, pretrained.example_inputs())
    batch = pretrained.batch(SENTENCES[:2])
    options = {"max_new_tokens": 5, "do_sample": False}
    assert torch.equal(fxq.load(made).generate(**batch, **options), expected.generate(**batch, **options))


def test_a_static_recipe_of_a_causal_lm_uses_the_text(gpt2, tmp_path, capsys):
    text = write_sentences(tmp_path / "text.txt")
    options = ["--recipe", "static", "--calibration", text, "--batches", 2]
    status, _, err = run(capsys, "quantize", gpt2[0], tmp_path / "out", *options)
    assert (status, err) == (0, "")
    assert fxq.load(tmp_path / "out").generate(torch.tensor([[5, 6]]), max_new_tokens=3).shape == (1, 5)


def test_explain_shows_the_steps_of_a_causal_lm(gpt2, capsys):
    status, out, _ = run(capsys, "explain", gpt2[0])
    assert status == 0
    assert "lm_head" in out and "(planned)" in out
    assert "lm_head" in run(capsys, "explain", gpt2[1])[1]


def test_compare_of_a_causal_lm_is_by_graph(gpt2, capsys):
    folder, made, _ = gpt2
    status, out, err = run(capsys, "compare", folder, made)
    assert (status, err) == (0, "")
    layers, _, outputs = out.partition("\n\n")
    assert "transformer.h.0.mlp.c_fc" in layers and "lm_head" in layers
    (row,) = outputs.strip().splitlines()[2:]
    name, decibel, cosine = row.split()
    assert name == "step.logits" and 15 < float(decibel) < 60 and float(cosine) > 0.98


def test_backend_check_of_a_packaged_file(capsys):
    status, out, _ = run(capsys, "backend", "check", "x86")
    assert status == 0
    assert "x86.toml is valid" in out
    for text in ("linear_gelu", "per-channel along axis 0", "static", "embedding_int8", "one fused float kernel"):
        assert text in out


OWN = """
name = "own"
kernels = "reference"
[spec.weight]
dtype = "int8"
symmetric = true
[[op]]
use = "embedding"
kernel = "embedding_int8"
weight = "weight"
"""


def test_backend_check_of_a_file(tmp_path, capsys):
    path = tmp_path / "own.toml"
    path.write_text(OWN)
    status, out, _ = run(capsys, "backend", "check", path)
    assert status == 0
    assert out.startswith("own: no description")
    assert "weight int8 per-tensor" in out
    assert "takes" not in out


def test_backend_check_names_what_is_wrong(tmp_path, capsys):
    path = tmp_path / "own.toml"
    path.write_text(OWN.replace('use = "embedding"', 'use = "embeding"'))
    status, out, err = run(capsys, "backend", "check", path)
    assert (status, out) == (1, "")
    assert "own.toml: [[op]] 1 (embeding)" in err
    assert "did you mean 'embedding'" in err


def test_backend_check_fails_where_the_file_promises_too_much(tmp_path, capsys):
    path = tmp_path / "own.toml"
    path.write_text(OWN + "[kernel.embedding_int8.weight]\nsymmetric = true\n")
    status, out, err = run(capsys, "backend", "check", path, "--json")
    assert status == 1
    assert err.startswith("fxquant: error: ")
    assert "does not hold on this machine: limits of kernel embedding_int8 allow weight = " in err
    data = json.loads(out)
    broken = [row for row in data["limits"] if row["promised"] and not row["holds"]]
    assert len(broken) == len(data["failures"]) > 1
    assert all("the weight has to be int8" in row["reason"] for row in broken)


def test_backend_schema_is_printed_or_written(tmp_path, capsys):
    status, out, _ = run(capsys, "backend", "schema")
    assert status == 0
    assert json.loads(out)["title"] == "fxquant backend file"
    path = tmp_path / "backend.schema.json"
    assert run(capsys, "backend", "schema", "--output", path)[:2] == (0, f"wrote {path}\n")
    assert json.loads(path.read_text()) == json.loads(out)
    status, _, err = run(capsys, "backend", "schema", "--output", tmp_path / "no" / "folder.json")
    assert (status, "folder.json: cannot be written: No such file" in err) == (1, True)


def test_verify_certifies_the_integers_of_an_artifact(artifact, capsys):
    status, out, err = run(capsys, "verify", artifact, "--devices", "--backend", "reference")
    assert (status, err) == (0, "")
    assert out.splitlines()[2].split()[:5] == ["reference", "torch,", "any", "device", "equal"]


def test_verify_fails_where_integers_differ(artifact, capsys, monkeypatch):
    wrong = Device("wrong", multiply=lambda q, weight: torch.zeros(len(q), len(weight), dtype=torch.int32))
    monkeypatch.setitem(DEVICES._entries, "reference", lambda: [wrong])
    status, out, err = run(capsys, "verify", artifact, "--devices", "--backend", "reference", "--json")
    assert status == 1
    assert "does not compute the same integers everywhere: 7 products differ" in err
    data = json.loads(out)
    assert data["devices"][0]["status"] == "differs"
    assert len(data["problems"]) == 7


STRICT = """
base = "dynamic"
[spec.weight]
dtype = "uint8"
"""


def test_strict_fails_and_saves_nothing(model, tmp_path, capsys):
    recipe = tmp_path / "odd.toml"
    recipe.write_text(STRICT)
    status, _, err = run(capsys, "quantize", model, tmp_path / "out", "--recipe", recipe, "--strict")
    assert status == 1
    assert "ops stay in float" in err
    assert "takes weight.dtype = int8, the recipe asks for uint8" in err
    assert not (tmp_path / "out").exists()


STATIC = "quantize {model} {tmp}/out --recipe static"
ERRORS = {
    "no-model": ("quantize {tmp}/nowhere {tmp}/out", "nowhere does not exist: expected the folder of a model"),
    "backend": ("quantize {model} {tmp}/out --backend x68", "unknown backend 'x68': did you mean 'x86'"),
    "recipe": ("quantize {model} {tmp}/out --recipe statc", "recipe 'statc' for backend x86: did you mean 'static'"),
    "no-calibration": (STATIC, "recipe static has static ranges: give --calibration FILE"),
    "missing-text": (STATIC + " --calibration {tmp}/no.txt", "no.txt: there is no such file"),
    "empty-text": (STATIC + " --calibration {tmp}/empty.txt", "empty.txt: is empty"),
    "batch-size": (
        STATIC + " --calibration {tmp}/text.txt --batch-size 0",
        "--batch-size 0, --batches 64: expected at",
    ),
    "explain-nothing": ("explain {tmp}/nowhere", "nowhere does not exist: expected the folder of a model"),
    "explain-recipe": ("explain {model} --recipe dinamic", "did you mean 'dynamic'"),
    "explain-artifact-recipe": ("explain {artifact} --recipe static", "is an artifact, whose recipe is settled: leave"),
    "compare-no-artifact": ("compare {model} {model}", "has no manifest.json"),
    "compare-limit": ("compare {model} {artifact} --limit 0", "--limit 0: expected at least 1"),
    "compare-text": ("compare {model} {artifact} --text {tmp}", "is a directory; give a text file"),
    "verify-no-artifact": ("verify {model} --devices", "has no manifest.json"),
    "verify-backend": ("verify {artifact} --devices --backend x68", "unknown backend 'x68': did you mean 'x86'"),
    "no-backend-file": ("backend check {tmp}/none.toml", "none.toml: there is no such file"),
}


@pytest.mark.parametrize(("arguments", "text"), ERRORS.values(), ids=ERRORS)
def test_errors_are_one_message_and_status_1(model, artifact, tmp_path, capsys, arguments, text):
    write_sentences(tmp_path / "text.txt")
    write_sentences(tmp_path / "empty.txt", [])
    status, out, err = run(capsys, *arguments.format(model=model, artifact=artifact, tmp=tmp_path).split())
    assert (status, out) == (1, "")
    assert err.startswith("fxquant: error: ")
    assert text in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_occupied_folder_is_refused_before_any_work(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(quantize_command, "load_pretrained", lambda *_: pytest.fail("the model was loaded"))
    (tmp_path / "thesis.tex").write_text("my only copy")
    status, _, err = run(capsys, "quantize", model, tmp_path)
    assert status == 1
    assert "holds thesis.tex and no artifact" in err
    assert (tmp_path / "thesis.tex").read_text() == "my only copy"


def test_without_transformers(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    status, _, err = run(capsys, "quantize", model, tmp_path / "out")
    assert status == 1
    assert "not installed: pip install 'fxquant[transformers]'" in err


def test_an_interruption_is_no_traceback(model, tmp_path, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(quantize_command, "load_pretrained", interrupted)
    assert run(capsys, "quantize", model, tmp_path / "out") == (130, "", "fxquant: interrupted\n")


def test_debug_shows_the_traceback(model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="holds file and no artifact"):
        main(["quantize", str(model), str(tmp_path), "--debug"])


def test_a_warning_is_one_line(model, tmp_path, capsys):
    recipe = tmp_path / "r.toml"
    recipe.write_text('base = "dynamic"\n[[override]]\npath = "decoder.*"\nquantize = false\n')
    status, _, err = run(capsys, "quantize", model, tmp_path / "out", "--recipe", recipe)
    assert status == 0
    assert err.startswith("fxquant: warning: the override path = 'decoder.*'")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["quantise"],
        ["quantize", "model"],
        ["explain", "m", "--task", "poetry"],
        ["backend"],
        ["backend", "check"],
    ],
    ids=["nothing", "no-such-command", "no-output", "no-such-task", "backend", "no-file"],
)
def test_wrong_usage_is_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("usage: fxquant")


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"fxquant {fxq.__version__}\n"


def test_the_status_is_that_of_the_process(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fxquant", "explain", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("fxquant", run_name="__main__")
    assert stop.value.code == 1
    assert capsys.readouterr().err.startswith("fxquant: error: ")


def test_a_process_whose_reader_stops_early_shows_no_error():
    command = f"{sys.executable} -m fxquant backend schema | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert done.stdout == "{\n"
    assert done.stderr == ""
