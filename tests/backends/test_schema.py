"""`Backend`: reading its data, every error with its place, recipes resolved, specs and refusals."""

import json
import tomllib
from copy import deepcopy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxquant.backends.schema import Backend, OpRule, Vocabulary
from fxquant.errors import ConfigError
from fxquant.recipe import Override, Recipe
from fxquant.spec import QuantSpec

VOCABULARY = Vocabulary(
    {
        "linear": ("x", "weight", "bias", "output"),
        "linear_gelu": ("x", "weight", "bias", "output"),
        "attention": ("query", "key", "value", "mask", "output"),
    },
    ("linear_int8",),
    ("minmax", "histogram"),
)
TEXT = """
name = "mine"
description = "for tests"
kernels = "x86"

[spec.activation]
dtype = "uint8"
granularity = "per-token"
dynamic = true
[spec.weight]
granularity = "per-channel"
axis = 0
symmetric = true

[recipe.dynamic]
[recipe.static.activation]
granularity = "per-tensor"
dynamic = false
observer = "histogram"
options = { method = "mse" }
[recipe.weight-only]
activation = "float"

[[op]]
use = "linear_gelu"
kernel = "linear_int8"
x = "activation"
weight = "weight"
output = "activation"
[[op]]
use = "linear"
x = "activation"
weight = "weight"
[[op]]
use = "attention"
note = "the kernel is float"

[kernel.linear_int8.x]
dtype = ["uint8", "int8"]
[kernel.linear_int8.weight]
dtype = "int8"
symmetric = true
inner_multiple_of = 4

[lower]
passes = ["merge_linears"]
"""
DATA = tomllib.loads(TEXT)
DYNAMIC = QuantSpec(dtype="uint8", granularity="per-token", dynamic=True)
STATIC = QuantSpec(dtype="uint8", observer="histogram", options=(("method", "mse"),))
WEIGHT = QuantSpec(granularity="per-channel", axis=0, symmetric=True)


def read(data):
    return Backend.from_dict(data, "mine.toml", VOCABULARY)


@pytest.fixture(scope="module")
def backend():
    return read(DATA)


def test_what_a_file_says(backend):
    assert (backend.name, backend.description, backend.kernels) == ("mine", "for tests", "x86")
    assert backend.specs == {"activation": DYNAMIC, "weight": WEIGHT}
    assert list(backend.recipes) == ["dynamic", "static", "weight-only"]
    assert [rule.use for rule in backend.rules] == ["linear_gelu", "linear", "attention"]
    assert backend.rules[0].roles == {"x": "activation", "weight": "weight", "output": "activation"}
    assert backend.limits["linear_int8"]["weight"].inner_multiple_of == 4
    assert backend.passes == ("merge_linears",)


def test_round_trip_through_json(backend):
    again = Backend.from_dict(json.loads(json.dumps(backend.to_dict())), "elsewhere", VOCABULARY)
    assert again == backend
    assert again.to_dict() == backend.to_dict()
    assert hash(again) == hash(backend)


def test_the_least_that_a_file_can_say():
    backend = read({"name": "none", "kernels": "x86"})
    assert (backend.rules, backend.passes, backend.specs) == ((), (), {})


def _with(table, **changes):
    """Return the data with the table at the dotted path changed; None removes a key."""
    data = deepcopy(DATA)
    holder = data
    for part in table.split("/") if table else ():
        holder = holder[int(part)] if part.isdigit() else holder.setdefault(part, {})
    for key, value in changes.items():
        holder[key] = value
        if value is None:
            del holder[key]
    return data


ERRORS = {
    "unknown key": (
        _with("", sepc={}),
        r"unknown key 'sepc': did you mean 'spec'\? Known: description, kernel, kernels, ",
    ),
    "no name": (_with("", name=None), r"the key 'name' is missing: expected a string"),
    "name type": (_with("", name=3), r"name = 3: expected a string, got int"),
    "no kernels": (_with("", kernels=None), r"the key 'kernels' is missing"),
    "description type": (_with("", description=[]), r"description = \[\]: expected a string, got list"),
    "specs type": (_with("", spec=[]), r"spec = \[\]: expected a table, got list"),
    "spec type": (_with("spec", activation="int8"), r"spec\.activation = 'int8': expected a table, got str"),
    "spec field": (
        _with("spec/weight", dtpye="int8"),
        r"\[spec\.weight\]: unknown key 'dtpye': did you mean 'dtype'\?",
    ),
    "spec field type": (_with("spec/weight", axis="0"), r"\[spec\.weight\]: axis = '0': expected int, got str"),
    "spec value": (
        _with("spec/weight", dtype="int9"),
        r"\[spec\.weight\]: dtype = 'int9' is not known: did you mean 'int",
    ),
    "spec contradiction": (
        _with("spec/activation", dynamic=False),
        r"\[spec\.activation\]: per-token scales exist at run time only: set dynamic = true, or use per-tensor",
    ),
    "spec observer": (
        _with("spec/weight", observer="histogarm"),
        r"\[spec\.weight\]: observer = 'histogarm' is no known observer: did you mean 'histogram'\? Known: histogram, ",
    ),
    "recipe type": (_with("recipe", static="x"), r"recipe\.static = 'x': expected a table, got str"),
    "recipe spec": (
        _with("recipe/static", activations={}),
        r"\[recipe\.static\.activations\]: backend mine has no spec 'activations': did you mean 'activation'\? Known: ",
    ),
    "recipe word": (
        _with("recipe/weight-only", activation="flaot"),
        r"\[recipe\.weight-only\.activation\]: 'flaot': expected the string 'float' or a table of changes",
    ),
    "recipe field": (
        _with("recipe/static/activation", observr="minmax"),
        r"\[recipe\.static\.activation\]: unknown key 'observr': did you mean 'observer'\?",
    ),
    "recipe observer": (
        _with("recipe/static/activation", observer="entropy"),
        r"\[recipe\.static\.activation\]: observer = 'entropy' is no known observer: Known: histogram, minmax",
    ),
    "recipe contradiction": (
        _with("recipe/static/activation", granularity="per-token"),
        r"\[recipe\.static\.activation\]: per-token scales exist at run time only",
    ),
    "ops type": (_with("", op={}), r"op = \{\}: expected a list, got dict"),
    "op type": (_with("", op=["linear"]), r"\[\[op\]\] 1: op = 'linear': expected a table, got str"),
    "op name type": (_with("op/1", use=["linear"]), r"\[\[op\]\] 2: use = \['linear'\]: expected a string, got list"),
    "op name": (
        _with("op/1", use="linaer"),
        r"\[\[op\]\] 2 \(linaer\): use = 'linaer' is no known op: did you mean 'lin",
    ),
    "op role": (
        _with("op/0", wieght="weight"),
        r"\[\[op\]\] 1 \(linear_gelu\): unknown key 'wieght': did you mean 'weight'",
    ),
    "op spec": (
        _with("op/0", x="wait"),
        r"\[\[op\]\] 1 \(linear_gelu\): x = 'wait' is no known spec: .*Known: activation, ",
    ),
    "op kernel": (
        _with("op/0", kernel="linear_int4"),
        r"\[\[op\]\] 1 \(linear_gelu\): kernel = 'linear_int4' is no known kernel: did you mean 'linear_int8'\?",
    ),
    "op without note": (_with("op/2", note=None), r"\[\[op\]\] 3 \(attention\): no role is quantized: say why in note"),
    "kernel name": (
        _with("kernel", linear_int4={}),
        r"\[kernel\.linear_int4\]: unknown kernel 'linear_int4': did you mean 'linear_int8'\?",
    ),
    "kernel type": (_with("kernel", linear_int8=8), r"kernel\.linear_int8 = 8: expected a table, got int"),
    "kernel role": (
        _with("kernel/linear_int8", wait={}),
        r"\[kernel\.linear_int8\]: unknown key 'wait': .*Known: bias, ",
    ),
    "kernel role type": (
        _with("kernel/linear_int8", x="int8"),
        r"\[kernel\.linear_int8\.x\]: x = 'int8': expected a table",
    ),
    "kernel field": (
        _with("kernel/linear_int8/x", dtypes=["int8"]),
        r"\[kernel\.linear_int8\.x\]: unknown key 'dtypes': did you mean 'dtype'\?",
    ),
    "kernel value": (
        _with("kernel/linear_int8/x", dtype=["int9"]),
        r"\[kernel\.linear_int8\.x\]: dtype = 'int9' is not known: did you mean 'int",
    ),
    "lower type": (_with("", lower=[]), r"lower = \[\]: expected a table, got list"),
    "lower key": (_with("lower", pases=[]), r"\[lower\]: unknown key 'pases': did you mean 'passes'\?"),
    "passes type": (_with("lower", passes="unpad"), r"\[lower\]: passes = 'unpad': expected a list, got str"),
    "pass type": (_with("lower", passes=[1]), r"\[lower\]: passes = 1: expected a string, got int"),
}


@pytest.mark.parametrize(("data", "text"), ERRORS.values(), ids=ERRORS)
def test_wrong_files(data, text):
    with pytest.raises(ConfigError, match=rf"^mine\.toml: {text}"):
        read(data)


@pytest.mark.parametrize(
    ("wish", "activation"),
    [("dynamic", DYNAMIC.to_dict()), ("static", STATIC.to_dict()), ("weight-only", "float")],
    ids=["dynamic", "static", "weight-only"],
)
def test_packaged_recipes(backend, wish, activation):
    recipe = backend.recipe(wish)
    assert (recipe.name, recipe.base) == (wish, None)
    assert recipe.specs == {"activation": activation, "weight": WEIGHT.to_dict()}


def test_a_recipe_builds_on_its_base(backend):
    recipe = backend.recipe(Recipe(base="static", specs={"activation": {"dtype": "int8"}}))
    assert QuantSpec.from_dict(recipe.specs["activation"]) == QuantSpec(**{**vars(STATIC), "dtype": "int8"})


def test_a_recipe_without_base_starts_from_the_specs(backend):
    assert backend.recipe(Recipe()).specs == backend.recipe("dynamic").specs


def test_another_observer_drops_the_options_of_the_base(backend):
    recipe = backend.recipe({"base": "static", "spec": {"activation": {"observer": "minmax"}}})
    assert recipe.specs["activation"]["options"] == {}


HEAD = {"path": "*head", "spec": {"weight": {"symmetric": False}}}


def with_head(overrides):
    changed = tomllib.loads(TEXT)
    changed["recipe"]["weight-only"]["override"] = overrides
    return Backend.from_dict(changed, "mine.toml", VOCABULARY)


def test_a_packaged_recipe_may_have_overrides_which_come_after_the_users():
    backend, mine = with_head([HEAD]), Override(path="a.*", quantize=False)
    packaged = Override(path="*head", specs={"weight": {"symmetric": False}})
    assert backend.recipe("weight-only").overrides == (packaged,)
    resolved = backend.recipe(Recipe(base="weight-only", overrides=[mine]))
    assert resolved.overrides == (mine, packaged) and backend.recipe(resolved) == resolved
    assert backend.recipe(Recipe(base="dynamic", overrides=[mine])).overrides == (mine,)
    assert backend.packages(packaged) and not backend.packages(mine)
    again = Backend.from_dict(json.loads(json.dumps(backend.to_dict())), "again", VOCABULARY)
    assert again == backend and again.recipe("weight-only").overrides == (packaged,)


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        ([{"path": 3}], r"mine.toml: \[recipe.weight-only\]: .*\[\[override\]\] 1: path = 3"),
        ([HEAD, {"spec": {"wait": {}}}], r"\[\[override\]\] 2: .*has no spec 'wait': did you mean 'weight'"),
        ("*head", r"override = '\*head': expected a list of tables"),
    ],
)
def test_wrong_packaged_overrides(overrides, text):
    with pytest.raises(ConfigError, match=text):
        with_head(overrides)


def test_no_spec_takes_the_name_of_a_recipes_overrides():
    changed = tomllib.loads(TEXT)
    changed["spec"]["override"] = {}
    with pytest.raises(ConfigError, match=r"\[spec.override\]: a spec cannot be called 'override'"):
        Backend.from_dict(changed, "mine.toml", VOCABULARY)


def test_a_recipe_file(backend, tmp_path):
    path = tmp_path / "careful.toml"
    path.write_text('base = "static"\n[[override]]\npath = "pooler.*"\nquantize = false\n')
    for wish in (path, str(path)):
        recipe = backend.recipe(wish)
        assert recipe.name == "careful"
        assert recipe.overrides == (Override(path="pooler.*", quantize=False),)
        assert recipe.specs == backend.recipe("static").specs


@given(
    base=st.sampled_from([None, "dynamic", "static", "weight-only"]),
    activation=st.sampled_from([{}, {"dtype": "int8"}, "float", {"granularity": "per-tensor", "dynamic": False}]),
    override=st.sampled_from([{}, {"weight": "float"}, {"weight": {"granularity": "per-tensor"}}]),
)
def test_resolving_twice_changes_nothing(base, activation, override):
    backend = read(DATA)
    recipe = backend.recipe(Recipe(base=base, specs={"activation": activation}, overrides=[Override(specs=override)]))
    assert backend.recipe(recipe) == recipe
    assert backend.recipe(Recipe.from_dict(json.loads(json.dumps(recipe.to_dict())))) == recipe


@pytest.mark.parametrize(
    ("wish", "text"),
    [
        (
            "statc",
            r"unknown recipe 'statc' for backend mine: did you mean 'static'\? Known: dynamic, static, weight-only, or",
        ),
        (3, r"recipe = 3: expected a recipe's name, the path of a \.toml file, .* or a Recipe"),
        ({"base": "statc"}, r"recipe 'custom': unknown recipe 'statc' for backend mine: did you mean 'static'\?"),
        (
            {"spec": {"wait": {}}},
            r"recipe 'custom': \[spec\.wait\]: backend mine has no spec 'wait': did you mean 'weight'\? Known: ",
        ),
        (
            {"spec": {"weight": {"observer": "minmix"}}},
            r"\[spec\.weight\]: observer = 'minmix' is no known observer: did you mean 'minmax'\?",
        ),
        (
            {"base": "static", "spec": {"activation": {"granularity": "per-token"}}},
            r"recipe 'custom': \[spec\.activation\]: per-token scales exist at run time only",
        ),
        (
            {"override": [{}, {"spec": {"bias": "float"}}]},
            r"\[\[override\]\] 2: \[override\.spec\.bias\]: backend mine has no",
        ),
        (
            {"override": [{"spec": {"activation": {"dynamic": False}}}]},
            r"\[\[override\]\] 1: \[override\.spec\.activation\]: per-token scales exist at run time only",
        ),
    ],
    ids=[
        "unknown name",
        "wrong type",
        "unknown base",
        "unknown spec",
        "unknown observer",
        "contradiction",
        "override spec",
        "override contradiction",
    ],
)
def test_wrong_wishes(backend, wish, text):
    with pytest.raises(ConfigError, match=text):
        backend.recipe(wish)


def test_wrong_recipe_files_are_named(backend, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('base = "statc"\n')
    with pytest.raises(ConfigError, match=r"^\S*mine\.toml: unknown recipe 'statc'"):
        backend.recipe(path)
    with pytest.raises(ConfigError, match=r"absent\.toml: there is no such file"):
        backend.recipe(str(tmp_path / "absent.toml"))


def test_specs_of_roles(backend):
    rule, static = backend.rules[0], backend.recipe("static")
    assert backend.spec(rule, "x", static, "a", "linear_gelu") == STATIC
    assert backend.spec(rule, "output", static, "a", "linear_gelu") == STATIC
    assert backend.spec(rule, "weight", static, "a", "linear_gelu") == WEIGHT
    assert backend.spec(rule, "bias", static, "a", "linear_gelu") is None
    assert backend.spec(rule, "x", backend.recipe("weight-only"), "a", "linear_gelu") is None
    assert backend.spec(backend.rules[2], "query", static, "a", "attention") is None


def test_specs_under_overrides(backend):
    overrides = [
        Override(path="head.*", quantize=False),
        Override(op="linear", specs={"activation": {"dtype": "int8"}}),
        Override(path="tail.*", specs={"weight": {"granularity": "per-tensor"}, "activation": "float"}),
    ]
    recipe = backend.recipe(Recipe(base="static", overrides=overrides))
    gelu, linear = backend.rules[:2]
    assert backend.spec(gelu, "weight", recipe, "head.fc", "linear_gelu") is None
    assert backend.spec(linear, "x", recipe, "body.fc", "linear").dtype == "int8"
    assert backend.spec(linear, "weight", recipe, "tail.fc", "linear") == WEIGHT  # the op's override came first
    assert backend.spec(gelu, "weight", recipe, "tail.fc", "linear_gelu") == QuantSpec(symmetric=True)
    assert backend.spec(gelu, "x", recipe, "tail.fc", "linear_gelu") is None
    assert backend.spec(gelu, "x", recipe, "body.fc", "linear_gelu") == STATIC


def test_an_override_can_quantize_what_the_recipe_leaves_float(backend):
    recipe = backend.recipe(Recipe(base="weight-only", overrides=[Override(path="a", specs={"activation": {}})]))
    assert backend.spec(backend.rules[0], "x", recipe, "a", "linear_gelu") == DYNAMIC
    assert backend.spec(backend.rules[0], "x", recipe, "b", "linear_gelu") is None


def test_refusals(backend):
    rule = backend.rules[0]
    affine = QuantSpec(granularity="per-channel", axis=0)
    text = "kernel linear_int8 takes weight.symmetric = true, the recipe asks for false"
    assert backend.refusal(rule, "weight", affine, (8, 8)) == text
    assert "multiple of 4" in str(backend.refusal(rule, "weight", WEIGHT, (8, 6)))
    assert backend.refusal(rule, "weight", WEIGHT, (8, 8)) is None
    assert backend.refusal(rule, "output", QuantSpec(dtype="int32"), (8, 8)) is None


def test_a_rule_without_kernel_refuses_nothing(backend):
    assert backend.refusal(OpRule(use="linear", roles={"weight": "weight"}), "weight", QuantSpec(), (8, 6)) is None
