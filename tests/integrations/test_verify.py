"""`fxquant verify`: the real runtimes agree, and each way in which one does not is told apart."""

import json
from dataclasses import replace

import numpy as np
import pytest
from captured import captured, converted

import fxquant as fxq
from fxquant.cli import main
from fxquant.integrations.export import FORMATS
from fxquant.integrations.runtimes import RUNTIMES, Runtime
from fxquant.integrations.substitutions import Written
from fxquant.verification.verification import Status


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return fxq.save(converted("mlp", "static"), tmp_path_factory.mktemp("artifact") / "static")


def only(artifact, runtime, **options):
    _, row = fxq.verify(artifact, rounds=0, backends=(), runtimes=[runtime], **options).rows
    return row


def test_own_backends_agree(artifact):
    found = fxq.verify(artifact, rounds=1, runtimes=())
    reference, *rows = found.rows
    assert (reference.status, found.problems) == (Status.REFERENCE, ())
    assert {row.runtime for row in rows} >= {"fxquant reference", "fxquant x86", "fxquant arm"}
    ran = [row for row in rows if row.status is not Status.ABSENT]
    assert {row.status for row in ran} == {Status.AGREES}
    assert all(row.seconds > 0 and row.difference.steps < 1 and row.size == reference.size for row in ran)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_other_runtimes_agree(artifact, name):
    for each in (name, "onnxscript"):
        pytest.importorskip(each)
    row = only(artifact, name)
    assert (row.status, row.remarks) == (Status.AGREES, ())
    assert row.runtime.startswith(f"{name} ")
    assert row.difference.sqnr > 40
    assert row.size > 1000


def _with_another_scale(start, factor):
    """Return what starts a runtime on a file whose first activation has another scale."""

    def changed(path, names, threads):
        import onnx

        model = onnx.load(path)
        wanted = next(node.input[1] for node in model.graph.node if node.op_type == "QuantizeLinear")
        for each in model.graph.initializer:
            if each.name == wanted:
                each.CopyFrom(
                    onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(each) * np.float32(factor), wanted)
                )
        onnx.save(model, path)
        return start(path, names, threads)

    return changed


def test_a_wrong_scale_differs(artifact, monkeypatch, capsys):
    for each in ("onnxruntime", "onnxscript"):
        pytest.importorskip(each)
    right = RUNTIMES["onnxruntime"]
    monkeypatch.setitem(RUNTIMES._entries, "wrong", replace(right, start=_with_another_scale(right.start, 0.8)))
    options = ["--rounds", "0", "--backend", "reference", "--runtime", "wrong", "--json"]
    assert main(["verify", str(artifact), *options]) == 1
    out, err = capsys.readouterr()
    assert "does not compute the same on every runtime: wrong" in err
    data = json.loads(out)
    assert [each["status"] for each in data["rows"]] == ["reference", "agrees", "differs"]
    assert data["rows"][2]["difference"]["steps"] > 1
    assert len(data["problems"]) == 1


def test_the_tolerance_is_the_users(artifact):
    _, row = fxq.verify(artifact, rounds=0, backends=["x86"], runtimes=(), tolerance=0).rows
    assert (row.status, row.difference.steps < 1) == (Status.DIFFERS, True), "floats are added in another order"


def test_substitutions_are_no_difference_but_are_shown(tmp_path):
    for each in ("onnxruntime", "onnxscript"):
        pytest.importorskip(each)
    row = only(fxq.save(converted("mlp"), tmp_path / "dynamic"), "onnxruntime")
    assert (row.status, row.remarks) == (Status.AGREES, ("2 × per-tensor dynamic",))
    assert row.to_artifact < row.difference.sqnr


def test_what_is_not_here_or_cannot_be_said_is_a_row(artifact, monkeypatch):
    absent = replace(RUNTIMES["openvino"], package="no_such_package", install="pip install no_such_package")
    monkeypatch.setitem(RUNTIMES._entries, "absent", absent)
    row = only(artifact, "absent")
    assert (row.status, row.remarks) == (Status.ABSENT, ("not installed: pip install no_such_package",))
    pytest.importorskip("onnxscript")
    monkeypatch.setitem(
        RUNTIMES._entries, "strict", replace(RUNTIMES["onnxruntime"], package="torch", target="tensorrt")
    )
    row = only(artifact, "strict")
    assert row.status is Status.INEXPRESSIBLE
    assert "TensorRT takes explicit quantization by rules that break here" in row.remarks[0]


def test_a_runtime_that_raises_fails(artifact, monkeypatch):
    def start(path, names, threads):
        raise RuntimeError("no such operator\nwith a trace")

    def write(graphs, folder, target):
        (folder / "nothing").write_text("nothing")
        return {name: Written(()) for name in graphs}

    monkeypatch.setitem(FORMATS._entries, "nothing", write)
    broken = Runtime("torch", "pip install torch", "nothing", None, "nothing", lambda gm: gm, start)
    monkeypatch.setitem(RUNTIMES._entries, "broken", broken)
    found = fxq.verify(artifact, rounds=1, backends=(), runtimes=["broken"])
    assert [each.partition(": ")[2] for each in found.problems] == ["RuntimeError: no such operator"]
    assert (found.rows[1].status, found.rows[1].seconds) == (Status.FAILS, None)


def test_inputs_of_the_user(artifact, tmp_path, capsys):
    np.savez(tmp_path / "inputs.npz", x=np.zeros((3, 16), dtype=np.float32))
    row = fxq.verify(artifact, tmp_path / "inputs.npz", rounds=0, backends=["reference"], runtimes=()).rows[1]
    assert row.difference.largest < 1e-6
    np.savez(tmp_path / "inputs.npz", y=np.zeros((3, 16), dtype=np.float32))
    assert main(["verify", str(artifact), "--inputs", str(tmp_path / "inputs.npz")]) == 1
    assert "has an array 'y', which is no input" in capsys.readouterr().err


BAD = {
    "no-artifact": ("verify {tmp}", "is no artifact: it has no manifest.json"),
    "float": ("verify {tmp}/float", "only a quantized graph can be verified: this one is captured only"),
    "backend": ("verify {artifact} --backend x68", "unknown backend 'x68': did you mean 'x86'"),
    "runtime": ("verify {artifact} --runtime openvin", "unknown runtime 'openvin': did you mean 'openvino'"),
    "tolerance": ("verify {artifact} --tolerance -1", "tolerance = -1.0, rounds = 5: expected no negative numbers"),
    "devices": ("verify {artifact} --devices --rounds 3", "--devices compares integers on generated inputs: leave out"),
}


@pytest.mark.parametrize("name", BAD)
def test_errors(artifact, tmp_path, capsys, name):
    command, message = BAD[name]
    if name == "float":
        fxq.save(captured("mlp")[2], tmp_path / "float")
    assert main(command.format(tmp=tmp_path, artifact=artifact).split()) == 1
    assert message in capsys.readouterr().err
