"""What graphs know of generating may come from a damaged or hostile file: programs say which key is off."""

import json
import random

import captured
import pytest
import torch
from generative import decoder, generating, prompts

import fxquant as fxq
from fxquant import artifact, manifest
from fxquant.errors import ArtifactError, ConfigError, FxQuantError
from fxquant.graph import edit
from fxquant.program import Program

JUNK = [None, True, -1, 10**30, 1.5, "", "x", "transformers.modeling_outputs", [], {}, [1], {"a": 1}]
KEYS = [("gpt2", "step", key) for key in ("positions", "parameters", "output", "config")]
KEYS += [("marian", "step", key) for key in ("parameters", "output", "config")]
KEYS += [("marian", "encoder", key) for key in ("parameters", "output")]


@pytest.fixture(scope="module")
def programs():
    return {name: captured.program(name) for name in ("gpt2", "marian")}


def marked(program, graph, **facts):
    """Return a program, without its model, one graph of which knows something else."""
    changed = edit.clone(program.graphs[graph])
    edit.mark(changed, **facts)
    return Program({**program.graphs, graph: changed}, program.adapter)


def facts_of(program, graph):
    return json.loads(json.dumps(edit.marks(program.graphs[graph])["generation"]))


@pytest.mark.parametrize(("name", "graph", "key"), KEYS, ids=map("-".join, KEYS))
def test_a_key_that_is_missing_is_named(programs, name, graph, key):
    facts = facts_of(programs[name], graph)
    del facts[key]
    with pytest.raises(
        ConfigError, match=rf"graph '{graph}' has no generation\.{key} among its marks, which capture_g"
    ):
        marked(programs[name], graph, generation=facts)
    with pytest.raises(ConfigError, match=f"graph '{graph}' has no generation among its marks"):
        marked(programs[name], graph, generation=None)


@pytest.mark.parametrize(("name", "graph", "key"), KEYS, ids=map("-".join, KEYS))
def test_a_value_of_another_kind_is_named(programs, name, graph, key):
    refused = 0
    for junk in JUNK:
        facts = {**facts_of(programs[name], graph), key: junk}
        try:
            marked(programs[name], graph, generation=facts)
        except ConfigError as error:
            assert f"graph '{graph}' has generation.{key} = " in str(error) and "expected" in str(error)
            refused += 1
    # [] is a list of parameters, {} an object of settings; a position may be null
    assert refused >= len(JUNK) - 2


@pytest.mark.parametrize(("name", "graph"), [("gpt2", "step"), ("marian", "step"), ("marian", "encoder")])
def test_whatever_is_altered_generates_or_is_our_error(programs, name, graph):
    program, choose = programs[name], random.Random(0)
    known = {key: edit.marks(program.graphs[graph])[key] for key in ("generation", "config")}
    paths = [path for path in places(known) if path[:2] != ("generation", "config")]
    refused = 0
    for _ in range(20):
        altered = json.loads(json.dumps(known))
        *path, last = choose.choice(paths)
        holder = altered
        for key in path:
            holder = holder[key]
        holder[last] = choose.choice(JUNK)
        try:
            assert marked(program, graph, **altered).generator is not None
        except FxQuantError:
            refused += 1
    assert 0 < refused < 20


def places(data, path=()):
    """Yield the path of every value in JSON data."""
    pairs = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in pairs:
        yield (*path, key)
        yield from places(value, (*path, key))


@pytest.mark.parametrize("junk", [*JUNK, ["GPT2LMHeadModel", 1], ["os.system"], ["Trainer"], ["GPT2Model"]], ids=repr)
def test_a_configuration_of_no_model_is_told(programs, junk):
    for config in (junk, {"architectures": junk}):
        program = marked(programs["gpt2"], "step", config=config)
        if config == {"architectures": ["GPT2LMHeadModel", 1]}:
            assert type(program.generator).__name__ == "GPT2LMHeadModel"
            continue
        with pytest.raises(ConfigError, match=r"which transformers does not have: give the model whose class it is"):
            assert program.generator is None
        attached = program.attach(decoder("gpt2"))
        assert generating(attached.generate, prompts(1)).shape[0] == 1


def test_ends_that_do_not_fit_are_named(programs):
    gpt2, marian = programs["gpt2"].graphs, programs["marian"].graphs
    with pytest.raises(
        ConfigError, match=r"graph 'step' takes \['decoder_input_ids', .*: expected tensors by name, inp"
    ):
        Program({"step": edit_marks(marian["step"], gpt2["step"])}, "decoder")
    with pytest.raises(
        ConfigError, match=r"graph 'cross' takes \['input_ids', 'attention_mask'\]: expected tensors by n"
    ):
        Program({**marian, "cross": marian["encoder"]}, "encoder-decoder")
    with pytest.raises(
        ConfigError, match=r"graph 'encoder' returns \['logits', 'key_0', 'value_0'\]: expected tensors b"
    ):
        Program({**marian, "encoder": marian["step"]}, "encoder-decoder")


def edit_marks(graph, other):
    changed = edit.clone(graph)
    edit.mark(changed, generation=edit.marks(other)["generation"])
    return changed


def test_an_artifact_names_its_file_and_the_key(programs, tmp_path):
    folder = fxq.save(programs["gpt2"], tmp_path / "artifact")
    document = json.loads((folder / "graph.json").read_text())
    del document["graphs"]["step"]["marks"]["generation"]["positions"]
    (folder / "graph.json").write_text(json.dumps(document))
    manifest.write(folder, [path.name for path in folder.iterdir() if path.name != manifest.FILE])
    text = r"graph\.json holds no Program that can be built here: graph 'step' has no generation\.positions"
    with pytest.raises(ArtifactError, match=text):
        artifact.load(folder)


def test_a_cache_of_another_form_is_refused(programs):
    changed = edit.clone(programs["gpt2"].graphs["step"])
    facts = {**facts_of(programs["gpt2"], "step"), "positions": None}
    edit.mark(changed, generation=facts)
    program = Program({"step": changed}, "decoder")
    with pytest.raises(FxQuantError, match="position_ids"):
        program(input_ids=torch.ones(1, 3, dtype=torch.long))
