"""Recipes and overrides: what they accept, which override wins, how changes merge."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxquant.errors import ConfigError
from fxquant.recipe import Override, Recipe, apply_changes, check_field
from fxquant.spec import QuantSpec

WEIGHT = QuantSpec(dtype="int8", granularity="per-channel", axis=1, symmetric=True)
STATIC = QuantSpec(dtype="uint8", observer="histogram", options=(("method", "mse"),))

RECIPE = """
base = "static"

[spec.activation]
observer = "histogram"
options = { method = "percentile", percentile = 99.9 }

[[override]]
path = "encoder.layer.0.*"
op = "linear*"
quantize = false

[[override]]
path = "pooler.*"
[override.spec]
activation = "float"
[override.spec.weight]
granularity = "per-tensor"
"""


def test_a_recipe_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(RECIPE)
    recipe = Recipe.from_toml(path)
    assert (recipe.name, recipe.base, recipe.source) == ("mine", "static", str(path))
    assert recipe.specs["activation"]["options"] == {"method": "percentile", "percentile": 99.9}
    assert recipe.overrides == (
        Override(path="encoder.layer.0.*", op="linear*", quantize=False),
        Override(path="pooler.*", specs={"activation": "float", "weight": {"granularity": "per-tensor"}}),
    )


def test_a_stated_name_beats_the_file_name(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('name = "careful"\n')
    assert Recipe.from_toml(str(path)).name == "careful"


def test_round_trip_through_json(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(RECIPE)
    recipe = Recipe.from_toml(path)
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_lists_and_tables_become_overrides():
    wish = {"path": "pooler.*", "quantize": False}
    recipe = Recipe(base="static", overrides=[Override(path="pooler.*", quantize=False), wish])
    assert recipe.overrides == (Override(path="pooler.*", quantize=False),) * 2


def test_options_as_pairs_become_a_table():
    recipe = Recipe(specs={"activation": {"options": (("method", "mse"),)}})
    assert recipe.specs["activation"] == {"options": {"method": "mse"}}


def test_later_changes_to_what_was_given_do_not_reach_the_recipe():
    changes = {"activation": {"dtype": "int8"}}
    recipe = Recipe(specs=changes)
    changes["activation"]["dtype"] = "uint8"
    assert recipe.specs["activation"]["dtype"] == "int8"


def test_recipes_are_hashable_and_keyword_only():
    assert len({Recipe(base="static"), Recipe(base="static")}) == 1
    with pytest.raises(TypeError):
        Recipe("static")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (
            {"overide": []},
            r"recipe: unknown key 'overide': did you mean 'override'\? Known: base, name, override, spec",
        ),
        ({"name": 3}, r"recipe: name = 3: expected a string, got int"),
        ({"base": 3}, r"recipe 'custom': base = 3: expected a string, got int"),
        ({"spec": "float"}, r"spec = 'float': expected a table, got str"),
        (
            {"spec": {"weight": "flaot"}},
            r"\[spec\.weight\]: 'flaot': expected the string 'float' or a table of changes",
        ),
        ({"spec": {"weight": {"dtpye": "int8"}}}, r"\[spec\.weight\]: unknown key 'dtpye': did you mean 'dtype'\?"),
        (
            {"spec": {"weight": {"dtype": "int9"}}},
            r"\[spec\.weight\]: dtype = 'int9' is not known: did you mean 'int8'\?",
        ),
        ({"spec": {"weight": {"symmetric": 1}}}, r"\[spec\.weight\]: symmetric = 1: expected bool, got int"),
        ({"override": "pooler.*"}, r"override = 'pooler\.\*': expected a list of tables"),
        ({"override": [{}, "pooler.*"]}, r"\[\[override\]\] 2: override = 'pooler\.\*': expected a table, got str"),
        ({"override": [{"paht": "x"}]}, r"\[\[override\]\] 1: unknown key 'paht': did you mean 'path'\?"),
        ({"override": [{"path": 3}]}, r"\[\[override\]\] 1: path = 3: expected a string"),
        ({"override": [{"op": ["linear"]}]}, r"\[\[override\]\] 1: op = \['linear'\]: expected a string"),
        ({"override": [{"quantize": "no"}]}, r"\[\[override\]\] 1: quantize = 'no': expected true or false"),
        (
            {"override": [{"quantize": False, "spec": {"weight": "float"}}]},
            r"\[\[override\]\] 1: quantize = false leaves its sites in float, so it takes no spec changes",
        ),
        (
            {"override": [{"spec": {"weight": {"range": "half"}}}]},
            r"\[\[override\]\] 1: \[spec\.weight\]: range = 'half' is not known: Known: full, restricted",
        ),
    ],
    ids=[
        "unknown key",
        "name type",
        "base type",
        "spec type",
        "neither float nor table",
        "unknown field",
        "unknown dtype",
        "field type",
        "overrides type",
        "override type",
        "unknown override key",
        "path type",
        "op type",
        "quantize type",
        "float with changes",
        "override spec value",
    ],
)
def test_wrong_recipes(data, text):
    with pytest.raises(ConfigError, match=text):
        Recipe.from_dict(data)


@pytest.mark.parametrize(
    "text", ["bsae = 'static'", "base = 3", "[spec.weight]\nbits = 8", "[[override]]\npath = 3"], ids=str.split
)
def test_errors_name_the_file(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"^\S*mine\.toml: "):
        Recipe.from_toml(path)


def test_the_first_override_that_matches_wins():
    shield = Override(path="encoder.layer.0.*")
    rest = Override(path="encoder.*", quantize=False)
    recipe = Recipe(overrides=[shield, rest])
    assert recipe.override_for("encoder.layer.0.output", "linear") is shield
    assert recipe.override_for("encoder.layer.1.output", "linear") is rest
    assert recipe.override_for("pooler.dense", "linear") is None


@pytest.mark.parametrize(
    ("override", "path", "kind", "matches"),
    [
        (Override(), "", "linear", True),
        (Override(path="encoder.*"), "encoder.layer.0", "linear", True),
        (Override(path="encoder.*"), "encoder", "linear", False),
        (Override(path="layer.?.fc"), "layer.1.fc", "linear", True),
        (Override(path="layer.?.fc"), "layer.10.fc", "linear", False),
        (Override(path="layer.[01].fc"), "layer.2.fc", "linear", False),
        (Override(op="linear*"), "a", "linear_gelu", True),
        (Override(op="linear"), "a", "linear_gelu", False),
        (Override(path="A"), "a", "linear", False),
        (Override(path="a", op="matmul"), "a", "linear", False),
    ],
    ids=["any", "dots", "below only", "one", "not two", "class", "op glob", "op exact", "case", "both must match"],
)
def test_globs(override, path, kind, matches):
    assert override.matches(path, kind) is matches


def test_unused_overrides_are_those_that_win_nowhere():
    wins, shadowed, absent = Override(path="encoder.*"), Override(path="encoder.layer.*"), Override(path="decoder.*")
    recipe = Recipe(overrides=[wins, shadowed, absent])
    sites = (site for site in [("encoder.layer.0", "linear"), ("pooler", "linear")])
    assert recipe.unused(sites) == (shadowed, absent)
    assert Recipe().unused([("a", "linear")]) == ()


@pytest.mark.parametrize(
    ("current", "changes", "expected"),
    [
        (WEIGHT, {}, WEIGHT),
        (WEIGHT, {"granularity": "per-tensor"}, QuantSpec(dtype="int8", symmetric=True)),
        (WEIGHT, {"granularity": "per-channel"}, WEIGHT),
        (WEIGHT, {"symmetric": False}, QuantSpec(granularity="per-channel", axis=1)),
        (STATIC, {"observer": "minmax"}, QuantSpec(dtype="uint8")),
        (STATIC, {"observer": "histogram"}, STATIC),
        (STATIC, {"dynamic": True}, QuantSpec(**{**STATIC.to_dict(), "options": STATIC.options, "dynamic": True})),
        (STATIC, "float", None),
    ],
    ids=["none", "drops axis", "keeps axis", "one field", "drops options", "keeps options", "idle observer", "float"],
)
def test_changes(current, changes, expected):
    assert apply_changes(current, changes, WEIGHT) == expected


def test_changes_to_float_start_from_the_backends_spec():
    assert apply_changes(None, {"dtype": "int8"}, STATIC) == QuantSpec(**{**vars(STATIC), "dtype": "int8"})


def test_changes_that_contradict_what_is_inherited():
    with pytest.raises(ConfigError, match="per-token scales exist at run time only"):
        apply_changes(STATIC, {"granularity": "per-token"}, STATIC)


specs = st.builds(
    QuantSpec,
    dtype=st.sampled_from(["int8", "uint8", "int32"]),
    granularity=st.sampled_from(["per-tensor", "per-channel", "per-token"]),
    symmetric=st.booleans(),
    dynamic=st.just(True),
    range=st.sampled_from(["restricted", "full"]),
    observer=st.sampled_from(["minmax", "histogram"]),
    options=st.sampled_from([(), (("method", "mse"),)]),
)


@given(specs, specs)
def test_a_whole_spec_as_changes_replaces_any_other(current, wanted):
    assert apply_changes(current, wanted.to_dict(), WEIGHT) == wanted


@pytest.mark.parametrize(
    ("key", "value"),
    [("granularity", "per-token"), ("granularity", "per-tensor"), ("axis", -1), ("options", {"bins": 512})],
)
def test_single_fields_need_no_company(key, value):
    check_field(key, value)
