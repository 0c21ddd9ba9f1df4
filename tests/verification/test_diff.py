"""Artifacts of one model side by side: what changed is told, what is worse fails, what is not alike is refused."""

import json

import numpy as np
import pytest
import torch
from captured import captured, converted
from golden import check_golden

import fxquant as fxq
from fxquant.cli import main
from fxquant.graph import edit
from fxquant.passes.qdq_nodes import QUANTIZE
from fxquant.verification.diff import Thresholds, diff, read_artifact
from fxquant.verification.diff_tables import diff_tables
from fxquant.verification.facts import Scales
from fxquant.verification.lock import read_lock, write_lock

WITHOUT_DOWN = {"base": "dynamic", "override": [{"path": "down", "quantize": False}]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("artifacts")
    fewer = fxq.convert(fxq.prepare(captured("mlp")[2], "x86", fxq.Recipe.from_dict(WITHOUT_DOWN)))
    scaled = edit.clone(converted("mlp", "static"))
    for node in scaled.graph.find_nodes(op="call_function", target=QUANTIZE)[:1]:
        scale = edit.get_tensor(scaled, node.args[1])
        edit.set_tensor(scaled, node.args[1].target, scale * 4)
    graphs = {"dynamic": converted("mlp"), "static": converted("mlp", "static"), "fewer": fewer, "scaled": scaled}
    other = fxq.capture(torch.nn.Sequential(torch.nn.Linear(16, 4)).eval(), (torch.ones(2, 16),))
    graphs["other"] = fxq.convert(fxq.prepare(other, "x86", "dynamic"))
    for name, gm in {**graphs, "float": captured("mlp")[2]}.items():
        fxq.save(gm, place / name)
    write_lock(read_artifact(place / "dynamic")[0], place / "fxquant.lock")
    return place


def test_an_artifact_equals_itself(folder):
    found = diff(folder / "static", folder / "static")
    assert (found.layers, found.scales, found.regressions, found.note) == ((), (), (), "")
    assert "every layer gives what it gave, to the bit" in diff_tables(found)


def test_a_lost_layer(folder):
    found = diff(folder / "fxquant.lock", folder / "fewer")
    assert found.errors == {}
    (regression,) = found.regressions
    assert regression.startswith("coverage fell from 100.0% to 66.7%: down (linear) is float-by-recipe: ")
    check_golden("diff_lost_layer", diff_tables(found))
    assert diff(folder / "dynamic", folder / "fewer", thresholds=Thresholds(coverage_drop=0.5)).regressions == ()


def test_another_scheme(folder):
    found = diff(folder / "dynamic", folder / "static")
    assert [each.name for each in found.layers] == ["up (linear)", "down (linear)"]
    assert [each.new.roles["x"].scheme for each in found.layers] == ["uint8 per-tensor affine"] * 2
    assert found.scales == (), "those of weights are equal, others were found at run time"
    rows = found.errors[""].rows
    assert all(20 < row.sqnr < 60 for row in rows)
    assert found.regressions == ()
    assert len(diff(folder / "dynamic", folder / "static", thresholds=Thresholds(sqnr=70.0)).regressions) == len(rows)


def test_a_scale_that_moved(folder):
    found = diff(folder / "static", folder / "scaled")
    (change,) = found.scales
    assert (change.name, change.role, change.counts) == ("up (linear)", "x", (1, 1))
    assert (change.median, change.largest) == pytest.approx((4.0, 4.0))
    assert "a scale of x of up (linear) changed 4-fold" in found.regressions
    assert (
        diff(folder / "static", folder / "scaled", thresholds=Thresholds(scale_ratio=4.1, sqnr=0.0)).regressions == ()
    )
    assert [each.largest for each in diff(folder / "scaled", folder / "static").scales] == [pytest.approx(4.0)]


def test_scales_of_a_lock_file_are_compared_by_quantiles():
    old = Scales.of(torch.linspace(1, 2, 100))
    new = Scales.of(torch.linspace(1, 2, 100) * 1.5)
    assert Scales(old.count, old.values).ratios(new).tolist() == pytest.approx([1.5] * 17)
    assert old.ratios(new).tolist() == pytest.approx([1.5] * 100)
    assert old.ratios(Scales.of(torch.ones(7))) is None


def test_lock_files_keep_what_is_compared(folder, tmp_path):
    facts = read_artifact(folder / "static")[0]
    write_lock(facts, tmp_path / "fxquant.lock")
    assert read_lock(tmp_path / "fxquant.lock") == facts
    assert [path.name for path in tmp_path.iterdir()] == ["fxquant.lock"]


def test_a_larger_artifact(folder):
    found = diff(folder / "fewer", folder / "dynamic", thresholds=Thresholds(size_growth=0.0))
    assert found.new.size > found.old.size, "of tiny weights the description is the larger part"
    assert [each.split(" from")[0] for each in found.regressions] == ["it grew"]


def test_programs_are_compared_graph_by_graph(tmp_path):
    program = fxq.Program({"forward": converted("mlp", "static")})
    fxq.save(program, tmp_path / "program")
    found = diff(tmp_path / "program", tmp_path / "program")
    assert list(found.errors) == ["forward"]
    assert {layer.name for layer in found.new.layers} == {"forward: up (linear)", "forward: down (linear)"}


def test_command_line(folder, tmp_path, capsys):
    assert main(["lock", str(folder / "dynamic"), str(tmp_path / "fxquant.lock")]) == 0
    assert "2 layers, coverage 100.0%" in capsys.readouterr().out
    assert main(["diff", str(tmp_path / "fxquant.lock"), str(folder / "dynamic")]) == 0
    assert capsys.readouterr().out.endswith("so that no layers were run\n\nno regressions\n")
    np.savez(tmp_path / "x.npz", x=np.ones((2, 16), dtype=np.float32))
    options = ["--inputs", str(tmp_path / "x.npz"), "--scale-ratio", "3", "--json"]
    assert main(["diff", str(folder / "static"), str(folder / "scaled"), *options]) == 1
    out, err = capsys.readouterr()
    assert "scaled is worse than" in err
    data = json.loads(out)
    assert data["regressions"][0] == "a scale of x of up (linear) changed 4-fold"
    assert data["thresholds"]["scale_ratio"] == 3
    assert [each["role"] for each in data["scales"]] == ["x"]
    assert data["sqnr"][""]["batches"] == 1


BAD = {
    "nothing": ("{tmp}/no {dir}/static", "no does not exist: expected the folder of an artifact"),
    "no-lock": ("{dir}/static/graph.json {dir}/static", "is neither an artifact nor a lock file"),
    "new-is-a-lock": ("{dir}/static {dir}/fxquant.lock", "is a file: expected the folder of an artifact"),
    "no-json": ("{tmp}/text.lock {dir}/static", "text.lock is no JSON"),
    "damaged": ("{tmp}/damaged.lock {dir}/static", "damaged.lock is a damaged lock file (KeyError: 'layers')"),
    "newer": ("{tmp}/newer.lock {dir}/static", "newer.lock has format version 2; this fxquant reads 1"),
    "other-model": ("{dir}/other {dir}/static", "different models: 0 layers are the same, of"),
    "float": ("{dir}/float {dir}/static", "only a quantized graph can be verified: this one is captured only"),
    "altered": ("{tmp}/altered {dir}/static", "does not have the checksum that manifest.json states"),
    "ratio": ("{dir}/static {dir}/static --scale-ratio 0.5", "scale_ratio = 0.5: expected 1 or more"),
    "drop": ("{dir}/static {dir}/static --coverage-drop -1", "coverage_drop = -1.0: expected a share, 0 or more"),
    "limit": ("{dir}/static {dir}/static --limit 0", "--limit 0: expected at least 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_errors(folder, tmp_path, capsys, name):
    arguments, message = BAD[name]
    (tmp_path / "text.lock").write_text("no JSON")
    (tmp_path / "damaged.lock").write_text('{"format": "fxquant lock", "version": 1}')
    (tmp_path / "newer.lock").write_text('{"format": "fxquant lock", "version": 2}')
    if name == "altered":
        fxq.save(converted("mlp"), tmp_path / "altered")
        path = tmp_path / "altered" / "graph.json"
        path.write_text(path.read_text().replace("linear", "lineal", 1))
    assert main(["diff", *arguments.format(tmp=tmp_path, dir=folder).split()]) == 1
    assert message in capsys.readouterr().err


def test_models_with_other_weights_are_told_apart_by_them(folder, tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Sequential()
    model.add_module("up", torch.nn.Linear(16, 48))
    model.add_module("act", torch.nn.ReLU())
    model.add_module("down", torch.nn.Linear(48, 8))
    gm = fxq.convert(fxq.prepare(fxq.capture(model.eval(), (torch.randn(4, 16),)), "x86", "dynamic"))
    fxq.save(gm, tmp_path / "wider")
    with pytest.raises(
        fxq.DataError, match=r"different models: down \(linear\) has weight \[8, 32\] in one, \[8, 48\] in"
    ):
        diff(folder / "dynamic", tmp_path / "wider")
