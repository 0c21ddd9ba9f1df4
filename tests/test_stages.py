"""prepare, convert and lower: what each takes, gives and refuses; graphs and Programs alike."""

import copy
import warnings

import captured as shared
import models
import pytest
import torch
from torch import fx, nn

import fxquant as fxq
from fxquant.errors import ConfigError, FxQuantError, FxQuantWarning
from fxquant.graph import edit
from fxquant.portable import portable
from fxquant.stages import recorded_backend, unfused


@pytest.fixture(scope="module")
def inputs():
    return shared.captured("bert")[1]


@pytest.fixture(scope="module")
def captured():
    return shared.captured("bert")[2]


@pytest.fixture(scope="module")
def graphs(captured, inputs):
    """Every stage of one static run for x86."""
    prepared = fxq.calibrate(fxq.prepare(captured, "x86", "static"), [inputs], progress=False)
    converted = fxq.convert(prepared)
    return {"captured": captured, "prepared": prepared, "converted": converted, "lowered": fxq.lower(converted)}


def text(gm):
    return [node.format_node() for node in gm.graph.nodes], sorted(gm.state_dict())


def test_every_stage_is_called_as_the_model_was(graphs, inputs):
    model, *_ = shared.captured("bert")
    expected = model(**inputs)
    for gm in graphs.values():
        for found in (gm(**inputs), gm(*inputs.values()), gm(**dict(reversed(inputs.items())))):
            assert type(found) is type(expected)
            assert list(found) == list(expected)
            torch.testing.assert_close(found[0], expected[0], atol=0.05, rtol=0)


def test_no_stage_changes_what_it_is_given(captured, inputs):
    before = text(captured)
    prepared = fxq.prepare(captured, "x86", "static")
    assert text(captured) == before
    fxq.calibrate(prepared, [inputs], progress=False)
    before = text(prepared)
    converted = fxq.convert(prepared)
    assert text(prepared) == before
    before = text(converted)
    fxq.lower(converted)
    assert text(converted) == before


def test_stages_say_what_they_are(graphs):
    assert {name: edit.marks(gm)["stage"] for name, gm in graphs.items()} == {name: name for name in graphs}
    assert recorded_backend(graphs["converted"]).name == "x86"
    assert edit.marks(graphs["prepared"])["recipe"]["name"] == "static"


@pytest.mark.parametrize(
    ("verb", "found"),
    [
        (verb, found)
        for verb, wanted in (("prepare", "captured"), ("convert", "prepared"), ("lower", "converted"))
        for found in ("captured", "prepared", "converted", "lowered")
        if found != wanted
    ],
)
def test_a_graph_of_another_stage_is_refused(graphs, verb, found):
    with pytest.raises(FxQuantError, match=rf"{verb} takes a graph that is .*; got one that is {found}"):
        getattr(fxq, verb)(graphs[found])


@pytest.mark.parametrize("verb", ["prepare", "convert", "lower"])
def test_what_is_no_graph_of_ours_is_refused(verb):
    with pytest.raises(FxQuantError, match="got a GraphModule that fxquant did not make"):
        getattr(fxq, verb)(fx.symbolic_trace(nn.Linear(2, 2)))
    with pytest.raises(FxQuantError, match=r"takes a graph from fxquant\.\w+, got a MLP"):
        getattr(fxq, verb)(models.MLP())


def test_unknown_names_come_with_the_nearest(captured, graphs):
    for backend, nearest in (("x68", "x86"), ("refrence", "reference")):
        with pytest.raises(ConfigError, match=f"unknown backend '{backend}': did you mean '{nearest}'"):
            fxq.prepare(captured, backend)
        with pytest.raises(ConfigError, match=f"did you mean '{nearest}'"):
            fxq.lower(graphs["converted"], backend)
    with pytest.raises(ConfigError, match="unknown recipe 'dinamic' for backend x86: did you mean 'dynamic'"):
        fxq.prepare(captured, "x86", "dinamic")


def test_every_copy_goes_on(graphs, inputs):
    for name, verb in (("converted", fxq.lower), ("prepared", fxq.convert)):
        expected = verb(graphs[name])(**inputs)[0]
        assert torch.equal(verb(copy.deepcopy(graphs[name]))(**inputs)[0], expected)
    twin = copy.deepcopy(graphs["lowered"])
    assert torch.equal(twin(**inputs)[0], graphs["lowered"](**inputs)[0])
    assert edit.marks(portable(twin))["stage"] == "converted"


def test_the_portable_graph_of_a_lowered_one_is_where_it_came_from(graphs, inputs):
    assert torch.equal(portable(graphs["lowered"])(**inputs)[0], graphs["converted"](**inputs)[0])
    for name in ("captured", "converted"):
        assert portable(graphs[name]) is graphs[name]
    with pytest.raises(FxQuantError, match="has observers and is not portable yet"):
        portable(graphs["prepared"])
    lost = edit.clone(graphs["lowered"])
    lost.meta.pop("fxquant_qdq")
    with pytest.raises(FxQuantError, match="has lost the graph that it came from"):
        portable(lost)
    with pytest.raises(FxQuantError, match="not made by fxquant"):
        portable(fx.symbolic_trace(nn.Linear(2, 2)))


def test_an_unfused_graph_has_a_kernel_for_each_op(graphs, inputs):
    lowered = graphs["lowered"]
    apart = unfused(lowered)
    claimed = [row for row in fxq.ledger(apart).rows if row.quantized]
    assert len({row.node for row in claimed}) == len(claimed)
    whole, each = (
        {(row.op, row.module_path, row.flops) for row in fxq.ledger(gm).rows if row.family or row.quantized}
        for gm in (lowered, apart)
    )
    assert each == whole
    torch.testing.assert_close(apart(**inputs)[0], lowered(**inputs)[0], atol=0.05, rtol=0.05)
    assert text(unfused(apart)) == text(apart), "it is a lowered graph like any other"
    assert portable(apart).graph.find_nodes(op="call_function", target=torch.ops.fxquant.dequantize.default)


def test_lowering_for_another_backend_records_it(graphs, inputs):
    reference = fxq.lower(graphs["converted"], "reference")
    assert recorded_backend(reference).name == "reference"
    assert fxq.ledger(reference).coverage == fxq.ledger(graphs["lowered"]).coverage
    torch.testing.assert_close(reference(**inputs)[0], graphs["converted"](**inputs)[0], atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("override", "unused"),
    [
        ({"path": "encoder.layer.0.*", "quantize": False}, False),
        ({"op": "embedding", "quantize": False}, False),
        ({"op": "linear_gelu", "quantize": False}, False),
        ({"path": "encoder.layer.7.*", "quantize": False}, True),
        ({"op": "conv2d", "spec": {"weight": {"granularity": "per-tensor"}}}, True),
    ],
    ids=["path", "op", "fused-op", "no-such-path", "no-such-op"],
)
def test_an_override_that_matches_nothing_is_a_warning(captured, override, unused):
    recipe = {"base": "dynamic", "override": [override]}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        prepared = fxq.prepare(captured, "x86", recipe)
    told = [str(each.message) for each in caught if each.category is FxQuantWarning]
    assert bool(told) is unused, told
    if unused:
        assert "matches no op of this model" in told[0]
    else:
        assert [row for row in fxq.ledger(prepared).rows if row.code == "float-by-recipe"]


def test_a_users_own_backend_file(captured, inputs, tmp_path):
    from importlib.resources import files

    from fxquant.backends import load_backend

    source = files("fxquant.backends").joinpath("x86.toml").read_text()
    path = tmp_path / "mine.toml"
    path.write_text(source.replace('name = "x86"', 'name = "mine"'))
    for given in (path, str(path), load_backend(path)):
        lowered = fxq.lower(fxq.convert(fxq.prepare(captured, given, "dynamic")))
        assert recorded_backend(lowered).name == "mine"
    saved = fxq.save(lowered, tmp_path / "artifact")
    path.unlink()
    assert torch.equal(fxq.load(saved)(**inputs)[0], lowered(**inputs)[0])


def test_a_program_goes_through_every_verb(captured, graphs, inputs):
    program = fxq.Program({"forward": captured, "twin": captured})
    prepared = fxq.calibrate(fxq.prepare(program, "x86", "static"), [inputs], progress=False)
    assert isinstance(prepared, fxq.Program)
    with pytest.raises(FxQuantError, match="no data"):
        fxq.convert(prepared)  # only "forward" was called
    prepared.graph("twin")(**inputs)
    converted = fxq.convert(prepared)
    lowered = fxq.lower(converted)
    assert torch.equal(lowered(**inputs)[0], graphs["lowered"](**inputs)[0])
    assert fxq.ledger(lowered).coverage == fxq.ledger(graphs["lowered"]).coverage
    integers = [tensor for tensor in converted.tensors().values() if tensor.dtype is torch.int8]
    alone = [tensor for tensor in graphs["converted"].buffers() if tensor.dtype is torch.int8]
    assert len(integers) == len(alone), "what two graphs share is quantized and stored once"


def test_lowered_graphs_export_and_compile(graphs, inputs):
    expected = graphs["lowered"](**inputs)
    again = torch.export.export(graphs["lowered"], (), inputs, strict=False).module()
    assert torch.equal(again(**inputs)[0], expected[0])
    torch._dynamo.reset()
    compiled = torch.compile(graphs["lowered"], backend="aot_eager", fullgraph=True)
    other = models.encoder_inputs(3, 9)
    assert torch.equal(compiled(**inputs)[0], expected[0])
    assert torch.equal(compiled(**other)[0], graphs["lowered"](**other)[0])
    assert type(compiled(**inputs)) is type(expected)
