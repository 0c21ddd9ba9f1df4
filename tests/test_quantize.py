"""The one call: every stage in turn, and nothing lost where one of them fails."""

import models
import pytest
import torch
from captured import captured
from captured import lowered as lowered_model

import fxquant as fxq
from fxquant.errors import CalibrationError, CaptureError, ConfigError, CoverageError, FxQuantError, InputError
from fxquant.numerics import sqnr
from fxquant.quantize import check_coverage, ledger, needs_calibration

# Every recipe for x86; for the reference, which other tests compare with x86, one that has all stages.
COMBINATIONS = [(recipe, "x86", 30) for recipe in ("dynamic", "static", "weight-only")]
COMBINATIONS += [("weight-only-int4", "x86", 12), ("static", "reference", 30)]


@pytest.fixture
def mlp():
    return models.mlp()


def first(result):
    return torch.utils._pytree.tree_leaves(result)[0]


@pytest.mark.parametrize("name", list(models.EVERY))
def test_every_model_in_every_recipe(name):
    """Strictly: no matrix product stays in float but by a rule; the numbers stay near the float model's."""
    model, inputs, graph = captured(name)
    with torch.no_grad():
        expected = model(**inputs)
    for recipe, backend, least in COMBINATIONS:
        prepared = fxq.prepare(graph, backend, recipe)
        if needs_calibration(prepared):
            fxq.calibrate(prepared, [inputs], progress=False)
        lowered = fxq.lower(fxq.convert(prepared))
        check_coverage(lowered)
        found = ledger(lowered)
        assert found.share("linear") == 1.0
        whole = {"float-by-recipe"} if name == "convnet" and recipe.startswith("weight-only") else set()
        assert {row.code for row in found.rows if row.family} <= {"", "float-by-rule"} | whole
        assert found.coverage == ledger(prepared).coverage
        assert sqnr(first(expected), first(lowered(**inputs))) > least, (backend, recipe)


def test_the_model_is_left_as_it_was(mlp):
    model, inputs = mlp
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fxq.quantize(model, inputs, recipe="static", calibration=[inputs])
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_quantize_is_the_stages_in_turn(mlp):
    model, inputs = mlp
    prepared = fxq.prepare(fxq.capture(model, inputs), "x86", "static")
    by_hand = fxq.lower(fxq.convert(fxq.calibrate(prepared, [inputs])))
    assert torch.equal(fxq.quantize(model, inputs, recipe="static", calibration=[inputs])(**inputs), by_hand(**inputs))


def test_calibration_may_be_any_iterable(mlp):
    model, inputs = mlp
    results = [
        fxq.quantize(model, inputs, recipe="static", calibration=batches)(**inputs)
        for batches in ([inputs], ((x,) for x in [inputs["x"]]), iter([inputs["x"]]))
    ]
    assert all(torch.equal(each, results[0]) for each in results)


def test_static_ranges_without_calibration_are_an_error(mlp):
    with pytest.raises(ConfigError, match=r'static ranges: give calibration=.* or use recipe="dynamic"'):
        fxq.quantize(*mlp, recipe="static")


@pytest.mark.parametrize(
    ("batches", "text"),
    [
        ([], "batches is empty"),
        ([{"y": torch.ones(4, 16)}], "'x' is missing"),
        ([torch.ones(4, 3)], "fixed size 16"),
        ([torch.ones(4, 16).double()], "torch.float64"),
        ([torch.full((4, 16), float("nan"))], "64 NaN"),
        ([torch.full((4, 16), float("inf"))], "64 Inf"),
        ([torch.zeros(4, 16)], "range is zero"),
    ],
    ids=["empty", "key", "shape", "dtype", "nan", "inf", "zeros"],
)
def test_bad_calibration_is_a_clear_error(mlp, batches, text):
    with pytest.raises(CalibrationError, match=text):
        fxq.quantize(*mlp, recipe="static", calibration=batches)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"backend": "x68"}, "unknown backend 'x68': did you mean 'x86'"),
        ({"recipe": "statik"}, "unknown recipe 'statik' .* did you mean 'static'"),
        ({"recipe": {"base": "dynamic", "spec": {"activatoin": {}}}}, "did you mean 'activation'"),
        ({"recipe": {"base": "static", "spec": {"activation": {"observer": "minmx"}}}}, "did you mean 'minmax'"),
        ({"recipe": {"base": "dynamic", "overide": []}}, "did you mean 'override'"),
    ],
    ids=["backend", "recipe", "spec", "observer", "key"],
)
def test_unknown_names_come_with_the_nearest(mlp, options, text):
    with pytest.raises(ConfigError, match=text):
        fxq.quantize(*mlp, **options)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_a_model_in_another_dtype_is_refused(mlp, dtype):
    model, inputs = mlp
    with pytest.raises(CaptureError, match=rf"'up.weight' is {dtype}, not torch.float32: convert with model.float"):
        fxq.quantize(model.to(dtype), {"x": inputs["x"].to(dtype)})


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=["nan", "inf"])
def test_a_damaged_checkpoint_is_refused(mlp, value):
    model, inputs = mlp
    with torch.no_grad():
        model.down.weight[1, 2] = value
    with pytest.raises(CaptureError, match=r"'down.weight' contains NaN or infinity"):
        fxq.quantize(model, inputs)


def test_strict_accepts_what_is_left_in_float_on_purpose(mlp):
    recipe = {"base": "dynamic", "override": [{"path": "up", "quantize": False}]}
    lowered = fxq.quantize(*mlp, recipe=recipe, strict=True)
    assert [row.op for row in fxq.ledger(lowered).rows if row.quantized] == ["linear"]
    model, inputs = models.convnet()
    for recipe, share in (("dynamic", 1.0), ("weight-only-int4", 0.0)):
        assert fxq.ledger(fxq.quantize(model, inputs, recipe=recipe, strict=True)).share("convolution") == share


def test_strict_refuses_what_the_backend_cannot_grant(mlp):
    recipe = {"base": "dynamic", "spec": {"weight": {"symmetric": False}}}
    assert fxq.ledger(fxq.quantize(*mlp, recipe=recipe)).coverage == 0.0
    with pytest.raises(
        CoverageError, match=r"ops stay in float:\n  aten.linear at up \(kernel-limit\): kernel linear_int8 takes"
    ):
        fxq.quantize(*mlp, recipe=recipe, strict=True)


def test_strict_does_not_wait_for_calibration(mlp):
    def batches():
        raise AssertionError("calibrated before the plan was checked")
        yield

    recipe = {"base": "static", "spec": {"weight": {"symmetric": False}}}
    with pytest.raises(CoverageError):
        fxq.quantize(*mlp, recipe=recipe, strict=True, calibration=batches())


def test_a_long_list_of_missed_ops_is_cut():
    recipe = {"base": "dynamic", "spec": {"weight": {"symmetric": False}}}
    prepared = fxq.prepare(captured("bert")[2], "x86", recipe)
    with pytest.raises(CoverageError, match=r"… and \d+ more\nChange the recipe"):
        check_coverage(prepared)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda gm, x: gm(), "'x' is missing"),
        (lambda gm, x: gm(x=x, y=x), "unexpected argument 'y'"),
        (lambda gm, x: gm(x, x), "2 positional arguments"),
        (lambda gm, x: gm(x, x=x), "given twice"),
        (lambda gm, x: gm(x[0]), r"shape \(16,\), and was captured with 2 dimensions"),
        (lambda gm, x: gm(x[:, :3]), "has size 3, and was captured with the fixed size 16"),
        (lambda gm, x: gm(x.double()), "torch.float64, and was captured as torch.float32"),
        (lambda gm, x: gm(x.tolist()), "is a list: expected a torch.Tensor"),
    ],
    ids=["missing", "extra", "too-many", "twice", "rank", "width", "dtype", "list"],
)
def test_a_call_of_another_kind_is_a_clear_error(mlp, call, text):
    with pytest.raises(InputError, match=text):
        call(fxq.quantize(*mlp), mlp[1]["x"])


@pytest.mark.parametrize(
    "extra", [{"output_hidden_states": True}, {"return_dict": False}, {"return_dict": True}], ids=str
)
def test_outputs_keep_the_structure_of_the_model(extra):
    model, inputs = models.distilbert()
    with torch.no_grad():
        expected = model(**inputs, **extra)
    lowered = fxq.quantize(model, {**inputs, **extra})
    for found in (lowered(**inputs, **extra), lowered(**inputs)):
        assert type(found) is type(expected)
        pairs = zip(*(torch.utils._pytree.tree_leaves(each) for each in (found, expected)), strict=True)
        assert all(sqnr(b, a) > 30 for a, b in pairs)


@pytest.mark.parametrize(("batch", "sequence"), [(1, 1), (1, 64), (7, 3)])
def test_other_sizes_than_the_example(batch, sequence):
    model, lowered = captured("bert")[0], lowered_model("bert")
    other = models.encoder_inputs(batch, sequence, seed=3)
    with torch.no_grad():
        assert sqnr(model(**other)[0], lowered(**other)[0]) > 30
    with pytest.raises(InputError, match="has size 65, and the model takes at most 64"):
        lowered(**models.encoder_inputs(1, 65))


def test_ledger_of_a_program_holds_the_rows_of_its_graphs(mlp):
    captured = fxq.capture(*mlp)
    program = fxq.prepare(fxq.Program({"forward": captured, "twin": captured}), "x86", "dynamic")
    assert not needs_calibration(program)
    assert ledger(program).rows == ledger(program.graph("forward")).rows * 2
    assert ledger(program).stage == "prepared"


def test_ledger_of_something_else_is_refused():
    with pytest.raises(FxQuantError, match="ledger takes a graph or a Program from fxquant, got a MLP"):
        fxq.ledger(models.MLP())
