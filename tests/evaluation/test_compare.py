import json
import math

import captured
import pytest
import torch
from generative import seq2seq_inputs
from models import MLP, encoder_inputs, mlp
from torch import nn

import fxquant as fxq
from fxquant import numerics
from fxquant.errors import DataError, FxQuantError, InputError
from fxquant.evaluation.error_sums import ErrorSums
from fxquant.graph import edit
from fxquant.observers import Observer
from fxquant.passes.canonicalize import canonicalize
from fxquant.spec import QuantSpec
from fxquant.stages import unfused


class Branches(nn.Module):
    """Three linears side by side, so that noise in one reaches no other."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, x):
        """Return the results by name, and how many rows there were."""
        return {"left": self.a(x), "middle": self.b(x), "right": self.c(x), "rows": torch.ones_like(x[:, :1]).long()}


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def with_noise(graph, target, amount):
    """Return a copy of a captured graph with noise on one weight."""
    copy = edit.clone(graph)
    weight = graph.get_parameter(target)
    edit.set_tensor(copy, target, weight.detach() + amount * noise(*weight.shape, seed=9))
    return copy


@pytest.fixture(scope="module")
def branches():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Branches().eval()
    return fxq.capture(model, {"x": noise(3, 6)})


BATCHES = [{"x": noise(3, 6, seed=seed)} for seed in range(4)]


@pytest.mark.parametrize("branch", ["a", "b", "c"])
def test_the_layer_with_noise_comes_out_worst(branches, branch):
    found = fxq.compare(branches, with_noise(branches, f"{branch}.weight", 0.1), BATCHES)
    assert found.rows[0].module_path == branch
    assert found.rows[0].sqnr < 40
    assert [row.sqnr for row in found.rows[1:]] == [math.inf, math.inf]


def test_rows_are_sorted_worst_first(branches):
    noisy = branches
    for target, amount in (("c.weight", 0.1), ("a.weight", 0.01), ("b.weight", 0.001)):
        noisy = with_noise(noisy, target, amount)
    found = fxq.compare(branches, noisy, BATCHES)
    assert [row.module_path for row in found.rows] == ["c", "a", "b"]


def test_sums_over_batches_are_those_of_all_values_at_once(branches):
    noisy = with_noise(branches, "b.weight", 0.1)
    found = fxq.compare(branches, noisy, BATCHES)
    with torch.no_grad():
        whole = torch.cat([batch["x"] for batch in BATCHES])
        left, right = branches(whole)["middle"], noisy(whole)["middle"]
    assert found.rows[0].sqnr == pytest.approx(numerics.sqnr(left, right), abs=1e-4)
    middle = {each.name: each for each in found.outputs}["middle"]
    assert middle.sqnr == found.rows[0].sqnr
    cosine = torch.nn.functional.cosine_similarity(left.flatten(), right.flatten(), dim=0)
    assert middle.cosine == pytest.approx(float(cosine), abs=1e-6)
    assert found.batches == 4


def test_outputs_that_are_no_floats_are_left_out(branches):
    assert [each.name for each in fxq.compare(branches, branches, BATCHES).outputs] == ["left", "middle", "right"]


def test_shares_are_of_the_whole_model(branches):
    assert [row.share for row in fxq.compare(branches, branches, BATCHES).rows] == pytest.approx([1 / 3] * 3)


def test_quantization_error_against_a_simulation_by_hand():
    model, inputs = mlp()
    graph = fxq.capture(model, inputs)
    lowered = fxq.lower(fxq.convert(fxq.prepare(graph, "reference", "dynamic")))
    token = QuantSpec(dtype="int8", granularity="per-token", dynamic=True)
    channel = QuantSpec(dtype="int8", granularity="per-channel", axis=0, symmetric=True)

    def simulated(x, linear):
        both = [(x, token), (linear.weight, channel)]
        x, weight = (numerics.fake_quantize(t, numerics.choose_qparams(t, spec), spec) for t, spec in both)
        return torch.nn.functional.linear(x, weight, linear.bias)

    x = noise(50, 16)
    with torch.no_grad():
        hidden, expected_hidden = simulated(x, model.up).relu(), model.up(x).relu()
        expected = numerics.sqnr(model(x), simulated(hidden, model.down))
    rows = {row.module_path: row for row in fxq.compare(graph, lowered, [x]).rows}
    assert rows["up"].op == "linear_relu"
    assert rows["up"].sqnr == pytest.approx(numerics.sqnr(expected_hidden, hidden), abs=0.01)
    assert rows["down"].sqnr == pytest.approx(expected, abs=0.01)


@pytest.fixture(scope="module")
def static_bert():
    """The stages of BERT under the static recipe, by name."""
    graph = captured.captured("bert")[2]
    prepared = fxq.prepare(graph, "x86", "static")
    fxq.calibrate(prepared, [encoder_inputs(seed=seed) for seed in range(3)])
    converted = fxq.convert(prepared)
    return {"captured": graph, "prepared": prepared, "converted": converted, "lowered": fxq.lower(converted)}


def test_names_of_a_captured_graph_are_those_of_its_quantized_forms(static_bert):
    found = fxq.compare(static_bert["captured"], static_bert["lowered"], [encoder_inputs(seed=7)])
    claimed = [row for row in fxq.ledger(static_bert["lowered"]).rows if row.quantized]
    products = [row for row in found.rows if not row.kernel.startswith("float")]
    assert len(products) == len(claimed)
    assert {row.module_path for row in claimed} == {row.module_path for row in products}


def test_canonical_names_are_the_same_each_time():
    def names(graph):
        return [node.name for node in canonicalize(graph).graph.nodes]

    model, inputs, graph = captured.captured("bert")
    assert names(fxq.capture(model, inputs)) == names(graph)


def test_a_kernel_that_requantizes_is_compared_in_float(static_bert):
    lowered = unfused(static_bert["lowered"])
    requantized = [node for node in lowered.graph.nodes if "requantized" in edit.marks(node)]
    assert requantized, "the fused GELU feeds the next linear in integers"
    paths = {edit.marks(node)["claim"]["path"] for node in requantized}
    found = fxq.compare(static_bert["converted"], lowered, [encoder_inputs(seed=7)])
    # Nothing but values on the edge between two steps may differ between the Q/DQ graph and its kernels.
    assert all(row.sqnr > 35 for row in found.rows if row.module_path in paths)


def test_a_result_that_is_handed_on_in_8_bits_counts_with_its_rounding():
    model, inputs = mlp()
    prepared = fxq.prepare(fxq.capture(model, inputs), "reference", "static")
    converted = fxq.convert(fxq.calibrate(prepared, [inputs]))
    x = noise(50, 16)
    rows = {row.module_path: row for row in fxq.compare(converted, fxq.lower(converted), [x]).rows}
    assert rows["up"].sqnr > 60
    float_rows = {row.module_path: row for row in fxq.compare(fxq.capture(model, inputs), converted, [x]).rows}
    assert 10 < float_rows["up"].sqnr < 50


@pytest.mark.parametrize("stage", ["captured", "prepared", "converted", "lowered"])
def test_every_stage_equals_itself(static_bert, stage):
    found = fxq.compare(static_bert[stage], static_bert[stage], [encoder_inputs(seed=7)])
    assert all(row.sqnr == math.inf for row in found.rows)
    assert [each.cosine for each in found.outputs] == pytest.approx([1.0, 1.0])


def test_observers_see_nothing_of_a_comparison(static_bert):
    prepared = static_bert["prepared"]

    def state():
        modules = [module for module in prepared.modules() if isinstance(module, Observer)]
        return [buffer.clone() for module in modules for buffer in module.buffers()]

    before = state()
    fxq.compare(static_bert["captured"], prepared, [{**encoder_inputs(), "input_ids": torch.full((2, 12), 63)}])
    assert before
    assert all(torch.equal(a, b) for a, b in zip(before, state(), strict=True))


def test_graphs_are_left_as_they_are(static_bert):
    before = str(static_bert["captured"].graph)
    fxq.compare(static_bert["captured"], static_bert["lowered"], [encoder_inputs()])
    assert str(static_bert["captured"].graph) == before


def test_table_shows_the_worst_and_counts_the_rest(branches):
    table = fxq.compare(branches, with_noise(branches, "b.weight", 0.1), BATCHES).to_table(limit=1)
    assert "… and 2 layers with less error" in table
    lines = table.splitlines()
    assert lines[0].split()[:2] == ["module", "op"]
    assert lines[2].startswith("b ")
    assert "equal" in table.partition("output")[2]


def test_json_has_null_where_values_are_equal(branches):
    data = json.loads(fxq.compare(branches, with_noise(branches, "b.weight", 0.1), BATCHES).to_json())
    assert data["batches"] == 4
    assert [(row["module_path"], row["sqnr"] is None) for row in data["rows"]] == [
        ("b", False),
        ("a", True),
        ("c", True),
    ]
    assert data["outputs"][0] == {"name": "left", "sqnr": None, "cosine": 1.0}


def test_empty_batches(branches):
    with pytest.raises(DataError, match="batches is empty: a comparison needs at least one batch"):
        fxq.compare(branches, branches, iter([]))


@pytest.mark.parametrize("batches", [{"x": noise(3, 6)}, noise(3, 6), "text", 3], ids=["dict", "tensor", "str", "int"])
def test_one_batch_is_no_list_of_batches(branches, batches):
    with pytest.raises(DataError, match=f"batches is one {type(batches).__name__}: expected an iterable of batches"):
        fxq.compare(branches, branches, batches)


def test_a_batch_of_another_type_is_named(branches):
    with pytest.raises(InputError, match="batch 1: is int: expected a dict of keyword arguments"):
        fxq.compare(branches, branches, [*BATCHES[:1], 5])


def test_a_batch_with_other_arguments_is_named(branches):
    with pytest.raises(InputError, match="batch 0: argument 'x' is missing"):
        fxq.compare(branches, branches, [{"y": noise(3, 6)}])


def test_batches_may_be_tuples_and_tensors(branches):
    found = fxq.compare(branches, branches, [(noise(3, 6),), noise(2, 6), [noise(1, 6)]])
    assert found.batches == 3


def test_graphs_of_other_models_have_no_layer_in_common(branches):
    other = fxq.capture(nn.Conv2d(6, 4, 1), {"input": noise(2, 6, 3, 3)})
    with pytest.raises(DataError, match="no layer in common: expected two graphs of one model"):
        fxq.compare(branches, other, BATCHES)


def test_graphs_with_other_outputs(branches):
    other = fxq.capture(MLP(), {"x": noise(2, 16)})
    with pytest.raises(DataError, match=r"the reference returns \['left', .*the candidate \['output'\]"):
        fxq.compare(branches, other, BATCHES)


def test_layers_of_other_shapes():
    small = fxq.capture(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), {"input": noise(2, 4)})
    large = fxq.capture(nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2)), {"input": noise(2, 4)})
    with pytest.raises(DataError, match=r"batch 0: 0 has shape \(2, 3\) in the reference and \(2, 5\)"):
        fxq.compare(small, large, [noise(2, 4)])


@pytest.mark.parametrize("role", ["reference", "candidate"])
def test_only_graphs_are_compared(branches, role):
    wrong = {"reference": (MLP(), branches), "candidate": (branches, MLP())}[role]
    with pytest.raises(FxQuantError, match=f"{role} is MLP: expected a graph from fxquant.capture"):
        fxq.compare(*wrong, BATCHES)


def test_infinities_in_both_are_no_noise():
    sums = ErrorSums()
    sums.add(torch.tensor([1.0, -math.inf]), torch.tensor([1.5, -math.inf]))
    assert sums.sqnr == pytest.approx(10 * math.log10(1 / 0.25))


@pytest.mark.parametrize(
    ("reference", "candidate", "sqnr"),
    [([0.0], [1.0], -math.inf), ([1.0], [math.inf], -math.inf), ([0.0], [0.0], math.inf)],
    ids=["silent", "infinite", "equal"],
)
def test_extreme_errors(reference, candidate, sqnr):
    sums = ErrorSums()
    sums.add(torch.tensor(reference), torch.tensor(candidate))
    assert sums.sqnr == sqnr


def test_nan_is_the_worst_error(branches):
    noisy = with_noise(with_noise(branches, "a.weight", 5.0), "c.weight", math.nan)
    found = fxq.compare(branches, noisy, BATCHES)
    assert found.rows[0].module_path == "c"
    assert math.isnan(found.rows[0].sqnr)


@pytest.mark.parametrize(
    ("reference", "candidate", "cosine"),
    [([3.0, 4.0], [4.0, 3.0], 24 / 25), ([0.0], [1.0], 0.0), ([0.0], [0.0], 1.0)],
    ids=["turned", "silent", "equal"],
)
def test_cosine_of_sums(reference, candidate, cosine):
    sums = ErrorSums()
    sums.add(torch.tensor(reference), torch.tensor(candidate))
    assert sums.cosine == pytest.approx(cosine)


@pytest.fixture(scope="module")
def marian():
    return captured.program("marian")


def test_graphs_of_a_program_are_compared_one_by_one(marian):
    """Noise in the encoder is none of the decoder's, which gets what the reference's encoder gives."""
    noisy = {**marian.graphs, "encoder": with_noise(marian.graphs["encoder"], "model.encoder.layers.0.fc1.weight", 0.1)}
    found = fxq.compare(marian, fxq.Program(noisy, marian.adapter), [seq2seq_inputs("marian")])
    off = {row.module_path for row in found.rows if row.sqnr < math.inf}
    assert "model.encoder.layers.0.fc1" in off and all(path.startswith("model.encoder.") for path in off)
    assert any(row.module_path.startswith("model.decoder.") for row in found.rows)
    assert sum(row.share for row in found.rows) == pytest.approx(1, abs=0.01)
    assert {each.name: each.sqnr < math.inf for each in found.outputs} == {
        "encoder.last_hidden_state": True,
        "step.logits": False,
    }


def test_programs_of_other_graphs_are_refused(marian):
    with pytest.raises(
        DataError, match="the reference is a program of encoder, cross, step, and the candidate of forwa"
    ):
        fxq.compare(marian, fxq.Program({"forward": marian.graphs["encoder"]}), BATCHES)
    with pytest.raises(FxQuantError, match="candidate is Program: expected a graph from fxquant"):
        fxq.compare(marian.graphs["encoder"], marian, BATCHES)
