import copy
import json
import logging
import random
import re
import shutil
import subprocess
import sys

import captured as shared
import models
import pytest
import torch
from safetensors.torch import load_file, save_file

from fxquant import artifact, atomic, manifest, stages
from fxquant.calibration import calibrate
from fxquant.errors import ArtifactError, ConfigError
from fxquant.graph import edit
from fxquant.graph.capture import capture
from fxquant.graph.text import to_text
from fxquant.ledger import read_ledger
from fxquant.portable import kept
from fxquant.program import Program

KINDS = [(recipe, backend) for recipe in ("dynamic", "static", "weight-only-int4") for backend in ("x86", "reference")]


def converted(captured, inputs, recipe="dynamic", backend="reference"):
    prepared = stages.prepare(captured, backend, recipe)
    if recipe == "static":
        prepared = calibrate(prepared, [inputs], progress=False)
    return stages.convert(prepared)


@pytest.fixture(scope="module")
def bert():
    """A captured tiny BERT and its inputs."""
    _, inputs, graph = shared.captured("bert")
    return graph, inputs


@pytest.fixture(scope="module")
def mlp():
    """A captured MLP, its Q/DQ graph and its inputs."""
    model, inputs = models.mlp()
    captured = capture(model, inputs)
    return captured, converted(captured, inputs), inputs


@pytest.fixture
def folder(mlp, tmp_path):
    """The artifact of the MLP."""
    return artifact.save(mlp[1], tmp_path / "artifact")


# What a new process does with artifacts below a folder: run all of them, save where the disk is full, die as it saves.
READ = """
import torch
from safetensors.torch import load_file, save_file

torch.set_num_threads(2)
inputs = load_file(top / "inputs")
found = {}
for folder in sorted(top.glob("*/manifest.json")):
    for name, gm in (("lowered", load(folder.parent)), ("qdq", load(folder.parent, lower=False))):
        found[f"{folder.parent.name}-{name}"] = gm(**inputs).last_hidden_state.detach().contiguous()
assert "transformers.models.bert.modeling_bert" not in sys.modules
save_file(found, top / "outputs")
"""
FULL_DISK = """
import resource, signal
from fxquant.errors import ArtifactError

folder = top / "full" / "artifact"
graph = load(folder, lower=False)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
try:
    save(graph, folder)
except ArtifactError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
"""
KILLED = """
import os

captured, folder = load(top / "killed" / "new"), top / "killed" / "artifact"

def dying(function, left):
    def call(*args, **kwargs):
        if next(left) < 0:
            os._exit(9)
        return function(*args, **kwargs)
    return call

for calls in range(60):
    child = os.fork()
    if child == 0:
        left = iter(range(calls, -2, -1))
        for name in ("rename", "fsync", "mkdir", "unlink"):
            setattr(os, name, dying(getattr(os, name), left))
        save(captured, folder)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    load(folder)
    print(code, load(folder, lower=False).meta["fxquant"]["stage"], flush=True)
    if code == 0:
        break
"""
HEAD = "import sys; from pathlib import Path; from fxquant.artifact import load, save; top = Path(sys.argv[1])"


@pytest.fixture(scope="module")
def elsewhere(bert, mlp, tmp_path_factory):
    """The folder in which a new process has read and saved artifacts, what it should have found, what it printed."""
    captured, inputs = bert
    top = tmp_path_factory.mktemp("elsewhere")
    expected = {}
    for recipe, backend in KINDS:
        qdq = converted(captured, inputs, recipe, backend)
        lowered = stages.lower(qdq)
        artifact.save(lowered, top / f"{recipe}-{backend}")
        expected[f"{recipe}-{backend}-lowered"] = lowered(**inputs).last_hidden_state
        expected[f"{recipe}-{backend}-qdq"] = qdq(**inputs).last_hidden_state
    save_file(inputs, top / "inputs")
    for name in ("full", "killed"):
        artifact.save(mlp[1], top / name / "artifact")
    artifact.save(mlp[0], top / "killed" / "new")
    shutil.copytree(top / "full", top / "before")
    done = subprocess.run(
        [sys.executable, "-c", "\n".join((HEAD, READ, KILLED, FULL_DISK)), str(top)],
        check=True,
        capture_output=True,
        text=True,
    )
    return top, expected, done.stdout


def test_a_new_process_computes_the_same_bits(elsewhere):
    top, expected, _ = elsewhere
    found = load_file(top / "outputs")
    assert found.keys() == expected.keys()
    for name, output in expected.items():
        assert torch.equal(found[name], output), name


def test_a_full_disk_leaves_what_was_there(elsewhere):
    top, _, printed = elsewhere
    assert "artifact cannot be written: " in printed
    assert "what was there is untouched" in printed
    before, after = (
        {path.name: path.read_bytes() for path in (top / name / "artifact").iterdir()} for name in ("before", "full")
    )
    assert after == before
    assert [path.name for path in (top / "full").iterdir()] == ["artifact"]


def test_a_save_killed_anywhere_leaves_an_artifact_that_loads(elsewhere):
    lines = re.findall(r"^\d .*$", elsewhere[2], re.MULTILINE)
    assert lines[-1] == "0 captured"
    assert lines[0] == "9 converted"
    assert {line.split()[0] for line in lines[:-1]} == {"9"}


def test_a_loaded_graph_is_the_graph_that_was_saved(bert, tmp_path):
    captured, inputs = bert
    qdq = converted(captured, inputs, "static")
    back = artifact.load(artifact.save(qdq, tmp_path / "a"), lower=False)
    without_sizes = [line.split("  # ")[0] for line in to_text(qdq).splitlines()]
    assert [line.split("  # ")[0] for line in to_text(back).splitlines()] == without_sizes
    assert read_ledger(back) == read_ledger(qdq)
    assert edit.marks(back) == edit.marks(qdq)
    again = artifact.save(back, tmp_path / "b")
    for name in (artifact.MODEL, artifact.GRAPH, artifact.CONFIG, artifact.LEDGER):
        assert (again / name).read_bytes() == (tmp_path / "a" / name).read_bytes(), name


def test_four_bit_weights_take_half_a_byte_each_on_disk(bert, tmp_path):
    captured, inputs = bert
    qdq = converted(captured, inputs, "weight-only-int4")
    place = artifact.save(stages.lower(qdq), tmp_path / "a")
    stored = load_file(place / artifact.MODEL)
    weights = {name: tensor for name, tensor in stored.items() if name.endswith("_int4")}
    assert len(weights) == sum(row.family == "linear" for row in read_ledger(qdq).rows)
    for name, packed in weights.items():
        assert packed.dtype is torch.uint8
        parameter = edit.get_tensor(captured, next(n for n in captured.graph.nodes if f"{n.target}_int4" == name))
        assert 2 * packed.numel() == parameter.numel()
    for backend in ("x86", "reference"):
        expected = stages.lower(qdq, backend)(**inputs).last_hidden_state
        assert torch.equal(artifact.load(place, backend)(**inputs).last_hidden_state, expected)


def test_a_lowered_graph_is_saved_as_its_qdq_graph(mlp, tmp_path):
    _, qdq, inputs = mlp
    lowered = stages.lower(qdq)
    for number, graph in enumerate((qdq, lowered, edit.clone(lowered), copy.deepcopy(lowered))):
        artifact.save(graph, tmp_path / str(number))
        for name in (artifact.MODEL, artifact.GRAPH):
            assert (tmp_path / str(number) / name).read_bytes() == (tmp_path / "0" / name).read_bytes()
    assert torch.equal(artifact.load(tmp_path / "3")(**inputs), lowered(**inputs))


def test_the_qdq_graph_of_a_lowered_one_costs_no_memory(mlp):
    lowered = stages.lower(mlp[1])
    for graph in (lowered, copy.deepcopy(lowered), edit.clone(lowered)):
        own = {tensor.data_ptr() for tensor in graph.buffers()}
        twin = [tensor for tensor in kept(graph).buffers() if tensor.dtype is torch.int8]
        assert len(twin) == 2
        assert all(tensor.is_meta or tensor.data_ptr() in own for tensor in twin)
        assert graph.state_dict().keys() == lowered.state_dict().keys()
        assert not any("qdq" in name for name, _ in graph.named_modules())


def test_another_backend_can_be_asked_for(mlp, folder):
    _, qdq, inputs = mlp
    loaded = artifact.load(folder, "x86")
    assert edit.marks(loaded)["backend"]["name"] == "x86"
    assert torch.equal(loaded(**inputs), stages.lower(qdq, "x86")(**inputs))
    with pytest.raises(ConfigError, match=r"unknown backend 'x68'"):
        artifact.load(folder, "x68")


def test_a_captured_float_graph_comes_back_as_it_was(bert, tmp_path):
    captured, inputs = bert
    back = artifact.load(artifact.save(captured, tmp_path / "a"))
    assert edit.marks(back)["stage"] == "captured"
    assert torch.equal(back(**inputs).last_hidden_state, captured(**inputs).last_hidden_state)
    prepared = stages.convert(stages.prepare(back, "reference", "dynamic"))
    assert torch.equal(prepared(**inputs)[0], converted(captured, inputs)(**inputs)[0])


def test_tied_weights_are_stored_once(tmp_path):
    _, inputs, graph = shared.captured("bert-masked-lm")
    qdq = converted(graph, inputs)
    back = artifact.load(artifact.save(qdq, tmp_path / "a"), lower=False)
    stored = load_file(tmp_path / "a" / artifact.MODEL).values()
    # the embeddings of words and positions and the layer have this shape; the head is tied to the first
    assert sum(tensor.shape == (models.VOCABULARY, 32) for tensor in stored) == 3
    assert torch.equal(back(**inputs).logits, qdq(**inputs).logits)


def test_a_program_keeps_its_adapter_and_shares_its_tensors(mlp, tmp_path):
    captured, _, inputs = mlp
    program = stages.convert(stages.prepare(Program({"forward": captured, "twin": captured}), "reference", "dynamic"))
    back = artifact.load(artifact.save(stages.lower(program), tmp_path / "a"), lower=False)
    assert isinstance(back, Program)
    assert (back.adapter, list(back.graphs)) == ("forward", ["forward", "twin"])
    assert torch.equal(back(**inputs), program(**inputs))
    left, right = (dict(gm.named_buffers()) for gm in back.graphs.values())
    assert left["up.weight_int8"] is right["up.weight_int8"]
    assert isinstance(artifact.load(tmp_path / "a"), Program)


def test_the_files_say_what_they_are(bert, tmp_path):
    captured, inputs = bert
    where = artifact.save(stages.lower(converted(captured, inputs)), str(tmp_path / "a"))
    assert where == tmp_path / "a"
    names = ["config.json", "graph.json", "ledger.json", "manifest.json", "model.safetensors"]
    assert sorted(path.name for path in where.iterdir()) == names
    assert json.loads((where / "config.json").read_text())["architectures"] == ["BertModel"]
    assert json.loads((where / "ledger.json").read_text())["forward"]["stage"] == "converted"
    stated = json.loads((where / "manifest.json").read_text())
    assert (stated["format"], stated["version"], stated["torch"]) == ("fxquant artifact", 1, str(torch.__version__))
    tensors = load_file(where / "model.safetensors")
    assert tensors["encoder.layer.0.attention.self.query.weight_int8"].dtype is torch.int8
    assert "BertModel" not in (where / "graph.json").read_text().replace('"architectures":["BertModel"]', "")


def test_an_integer_artifact_is_a_quarter_of_the_float_one(tmp_path):
    captured = capture(torch.nn.Linear(256, 256), (torch.randn(2, 256),))
    artifact.save(captured, tmp_path / "float")
    artifact.save(converted(captured, None), tmp_path / "int8")
    sizes = [(tmp_path / name / artifact.MODEL).stat().st_size for name in ("float", "int8")]
    assert sizes[1] < 0.28 * sizes[0]


def without_origin(captured):
    gm = edit.clone(captured)
    edit.mark(gm, stage="lowered")
    return gm


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda captured: stages.prepare(captured, "reference", "static"), r"a prepared graph .* convert it first"),
        (lambda captured: torch.fx.symbolic_trace(models.MLP()), "this one is not made by fxquant"),
        (lambda captured: models.MLP(), "save takes a graph from fxquant, got a MLP"),
        (without_origin, "has lost the graph that it came from"),
    ],
    ids=["prepared", "foreign", "module", "orphan"],
)
def test_other_graphs_are_refused_and_nothing_is_written(mlp, tmp_path, make, text):
    with pytest.raises(ArtifactError, match=text):
        artifact.save(make(mlp[0]), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_folder_with_something_else_is_left_alone(mlp, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(
        ArtifactError, match=r"holds thesis.tex and no artifact: save takes a folder that is new or empty"
    ):
        artifact.save(mlp[1], tmp_path)
    with pytest.raises(ArtifactError, match=r"thesis.tex is a file: save takes a folder"):
        artifact.save(mlp[1], tmp_path / "thesis.tex")
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_manifest_of_another_program_protects_its_folder(mlp, tmp_path):
    (tmp_path / "manifest.json").write_text('{"name": "my web app"}')
    with pytest.raises(ArtifactError, match=r"holds manifest.json and no artifact"):
        artifact.save(mlp[1], tmp_path)


def test_an_empty_folder_is_used(mlp, tmp_path):
    (tmp_path / "a").mkdir()
    artifact.save(mlp[1], tmp_path / "a")
    assert manifest.is_artifact(tmp_path / "a")


def test_an_artifact_is_replaced_and_files_beside_it_stay(mlp, folder):
    captured, _, _ = mlp
    (folder / "tokenizer.json").write_text("{}")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_text("x")
    (folder / "link").symlink_to("tokenizer.json")
    artifact.save(captured, folder)
    assert edit.marks(artifact.load(folder))["stage"] == "captured"
    assert (folder / "tokenizer.json").read_text() == "{}"
    assert (folder / "onnx" / "model.onnx").read_text() == "x"
    assert (folder / "link").is_symlink()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_linked_folder_stays_a_link(mlp, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk", target_is_directory=True)
    artifact.save(mlp[1], tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert manifest.is_artifact(tmp_path / "disk")


def test_an_interrupted_save_is_read_and_kept_with_what_lay_beside_it(mlp, folder, caplog):
    _, qdq, inputs = mlp
    (folder / "tokenizer.json").write_text("{}")
    folder.rename(atomic.previous(folder))
    with caplog.at_level(logging.WARNING, logger="fxquant"):
        assert torch.equal(artifact.load(folder, lower=False)(**inputs), qdq(**inputs))
    assert "a save was interrupted" in caplog.text
    artifact.save(qdq, folder)
    assert (folder / "tokenizer.json").exists()


def damage(name, change):
    def apply(folder):
        (folder / name).write_bytes(change((folder / name).read_bytes()))

    return apply


def remove(name):
    return lambda folder: (folder / name).unlink()


DAMAGE = {
    "model-cut": (
        damage("model.safetensors", lambda b: b[:-1]),
        r"model.safetensors has \d+ bytes, manifest.json says",
    ),
    "model-bit": (
        damage("model.safetensors", lambda b: b[:-1] + bytes([b[-1] ^ 1])),
        "model.safetensors does not have",
    ),
    "model-gone": (remove("model.safetensors"), "model.safetensors is missing from the folder"),
    "graph-cut": (damage("graph.json", lambda b: b[:500]), r"graph.json has 500 bytes"),
    "graph-byte": (
        damage("graph.json", lambda b: b.replace(b"relu", b"gelu")),
        "graph.json does not have the checksum",
    ),
    "graph-gone": (remove("graph.json"), "graph.json is missing from the folder"),
    "manifest-cut": (damage("manifest.json", lambda b: b[:50]), "manifest.json is no JSON"),
    "manifest-gone": (remove("manifest.json"), "is no artifact: it has no manifest.json"),
    "newer": (damage("manifest.json", lambda b: b.replace(b'"version": 1', b'"version": 7')), "has format version 7"),
    "gone": (shutil.rmtree, "does not exist: expected the folder of an artifact"),
}


@pytest.mark.parametrize(("harm", "text"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_a_clear_error(folder, harm, text):
    harm(folder)
    with pytest.raises(ArtifactError, match=text):
        artifact.load(folder)


def test_the_ledger_and_the_configuration_are_for_people(folder):
    (folder / "ledger.json").write_text("not read")
    artifact.load(folder)


def forge(folder, alter):
    """Alter the document of an artifact and state the right checksums, as an attacker would."""
    document = json.loads((folder / "graph.json").read_text())
    alter(document)
    text = document if isinstance(document, str) else json.dumps(document)
    (folder / "graph.json").write_text(text)
    manifest.write(folder, [path.name for path in folder.iterdir() if path.name != manifest.FILE])


def graph(document):
    return document["graphs"]["forward"]


def node(document, target):
    return next(entry for entry in graph(document)["nodes"] if entry.get("target") == target)


def claims(document):
    return [entry["marks"] for entry in graph(document)["nodes"] if "claim" in entry.get("marks", {})]


def calling(target, *args):
    def alter(document):
        node(document, "aten.relu.default").update(target=target, args=[{"str": arg} for arg in args])

    return alter


def members(document):
    return [entry["marks"] for entry in graph(document)["nodes"] if "member" in entry.get("marks", {})]


MARKER = "side-effect"
CODE = f"__import__('pathlib').Path('{MARKER}').touch()"


def rename_tensor(name):
    def alter(document):
        entry = next(entry for entry in graph(document)["nodes"] if entry["op"] == "get_attr")
        graph(document)["tensors"][name] = graph(document)["tensors"][entry["target"]]
        entry["target"] = name

    return alter


HOSTILE = {
    "os.system": (calling("os.system", f"touch {MARKER}"), "it calls 'os.system', which an artifact cannot"),
    "eval": (calling("builtins.eval", CODE), "it calls 'builtins.eval'"),
    "library": (calling("torch.ops.load_library", "evil.so"), "it calls 'torch.ops.load_library'"),
    "file": (
        calling("aten.from_file.default", MARKER),
        "aten.from_file.default, which no artifact may: it opens a file",
    ),
    "class": (calling("aten.__class__"), "it calls 'aten.__class__'"),
    "dunder": (rename_tensor("up.__class__.__init__"), "is no name that a tensor of a graph can have"),
    "code-in-name": (rename_tensor(f'up", {CODE}, "'), "is no name that a tensor of a graph can have"),
    "code-in-node": (lambda d: graph(d)["nodes"][0].update(name=f"x, {CODE}"), "its name is no identifier"),
    "signature": (
        lambda d: graph(d)["signature"].update(outputs={"kind": "output", "class": "os.path", "keys": [], "items": []}),
        "'os.path': only the ModelOutputs of transformers are built",
    ),
    "traversal": (
        lambda d: graph(d)["tensors"]["up.bias"].update(key="../../../etc/passwd"),
        "'../../../etc/passwd', which the tensor file does not hold",
    ),
    "nested": (
        lambda d: graph(d)["marks"].update(a=json.loads("[" * 150 + "]" * 150)),
        "nests values more than 100 deep",
    ),
    "huge": (lambda d: node(d, "aten.relu.default")["marks"]["value"].update(shape=[2**70, 2]), "makes no sense"),
    "no-graphs": (lambda d: d.update(graphs={}), "graph.json holds no graphs"),
    "graph-list": (lambda d: d.update(graphs=[1]), "graph.json holds no graphs"),
    "no-adapter": (lambda d: d.update(graphs={"a": graph(d)}), "names no adapter to call them"),
    "adapter": (
        lambda d: d.update(adapter="os.system"),
        r"no Program that can be built here: unknown adapter 'os.system'",
    ),
    "adapter-type": (lambda d: d.update(adapter=["forward"]), "unknown adapter"),
    "graph-name": (
        lambda d: d.update(adapter="forward", graphs={"forward": graph(d), "a.b": graph(d)}),
        "no Program that can be built here",
    ),
    "newer": (lambda d: d.update(version=2), "has format version 2"),
    "stage": (
        lambda d: graph(d)["marks"].update(stage="lowered"),
        r"\['lowered'\]: expected all captured, or all conv",
    ),
    "stage-type": (lambda d: graph(d)["marks"].update(stage=[["a"]]), "expected all captured, or all converted"),
    "backend": (lambda d: graph(d)["marks"]["backend"].update(kernels="evil"), "unknown kernel set 'evil'"),
    "no-backend": (lambda d: graph(d)["marks"].pop("backend"), "does not fit them"),
    "claim": (lambda d: claims(d)[0].update(claim={"id": 1}), "does not fit them"),
    "claim-kernel": (
        lambda d: claims(d)[0]["claim"].update(kernel="os.system"),
        "unknown reference kernel 'os.system'",
    ),
    "claim-roles": (lambda d: [marks.update(roles={"99": "x"}) for marks in members(d)], "does not fit them"),
    "claim-spec": (lambda d: claims(d)[0]["claim"]["specs"]["x"].update(dtype="eval"), "cannot be lowered: dtype"),
}


@pytest.mark.parametrize(("alter", "text"), HOSTILE.values(), ids=HOSTILE)
def test_a_forged_artifact_runs_nothing(folder, monkeypatch, events, alter, text):
    monkeypatch.chdir(folder.parent)
    forge(folder, alter)
    with pytest.raises(ArtifactError, match=text), events:
        artifact.load(folder)
    assert not events.found
    assert not (folder.parent / MARKER).exists()


JUNK = [
    None,
    True,
    -1,
    10**30,
    1.5,
    "",
    "x",
    "%x",
    "aten.relu.default",
    "reference",
    [],
    {},
    [1],
    {"a": 1},
    {"str": "x"},
]


def places(data, path=()):
    """Yield the path of every value in JSON data."""
    pairs = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in pairs:
        yield (*path, key)
        yield from places(value, (*path, key))


@pytest.mark.parametrize("seed", range(4))
def test_any_altered_value_loads_or_is_an_artifact_error(folder, seed):
    original, choose = (folder / "graph.json").read_text(), random.Random(seed)
    everywhere = list(places(json.loads(original)))
    refused = 0
    for _ in range(40):
        *path, last = choose.choice(everywhere)
        document = json.loads(original)
        holder = document
        for key in path:
            holder = holder[key]
        holder[last] = choose.choice(JUNK)
        forge(folder, lambda found, new=document: found.update(new))
        try:
            artifact.load(folder)
        except ArtifactError:
            refused += 1
    assert 0 < refused < 40


def test_absurd_nesting_in_the_text_is_refused(folder):
    (folder / "graph.json").write_text("[" * 500_000)
    manifest.write(folder, ["graph.json", "model.safetensors"])
    with pytest.raises(ArtifactError, match=r"graph.json nests values more than 100 deep"):
        artifact.load(folder)


def test_a_pickle_in_place_of_the_tensors_is_not_read(folder, events):
    torch.save({"w": torch.zeros(2)}, folder / "model.safetensors")
    manifest.write(folder, ["graph.json", "model.safetensors"])
    with pytest.raises(ArtifactError, match=r"model.safetensors cannot be read"), events:
        artifact.load(folder)
    assert not events.found


def test_loading_unpickles_and_starts_nothing(folder, events):
    with events:
        artifact.load(folder)
    assert not events.found


class Events:
    """Records the audit events of Python that a harmless load never causes, while it is entered."""

    DANGEROUS = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle.find_class", "ctypes.dlopen")

    def __init__(self):
        self.found = []
        self.active = False
        sys.addaudithook(self.record)

    def record(self, event, arguments):
        if self.active and (event in self.DANGEROUS or event.startswith("socket.")):
            self.found.append((event, arguments))

    def __enter__(self):
        self.found.clear()
        self.active = True

    def __exit__(self, *exception):
        self.active = False


@pytest.fixture(scope="module")
def all_events():
    return Events()  # an audit hook cannot be taken off again


@pytest.fixture
def events(all_events):
    return all_events


def test_the_recorder_of_events_sees_a_command(events):
    with events:
        subprocess.run([sys.executable, "-c", ""], check=True)
    assert events.found
