"""Backends by name and by path, the packaged files against what is registered."""

from pathlib import Path

import pytest
from backend_files import weights_alone

from fxquant.backends import Backend, load_backend, packaged_backends, read_backend, registered_vocabulary
from fxquant.errors import ConfigError
from fxquant.ops import OPS
from fxquant.spec import QuantSpec

PACKAGED = ["arm", "cuda", "reference", "x86"]
MINE = weights_alone("mine", "linear")


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(MINE)
    return path


def integer_rules(backend):
    """All but the later rules of the linears, for float8 and for float activations, behind those they make way for."""
    return [rule for rule in backend.rules if rule.kernel not in ("linear_fp8", "linear_weight_only")]


def test_packaged_names():
    assert set(PACKAGED) <= set(packaged_backends())


@pytest.mark.parametrize("name", PACKAGED)
def test_a_packaged_backend_loads_by_name(name):
    backend = load_backend(name)
    assert (backend.name, backend.source) == (name, f"{name}.toml")
    more = {"x86": set(), "arm": {"dynamic-per-tensor"}}.get(name, {"fp8"})
    assert set(backend.recipes) == {"dynamic", "static", "static-smoothquant", "weight-only", "weight-only-int4"} | more
    assert read_backend(backend.to_dict(), "stored") == backend


@pytest.mark.parametrize("recipe", ["weight-only", "weight-only-int4"])
def test_weights_alone_are_quantized_alike_by_all_backends(recipe):
    first, *others = (load_backend(name).recipes[recipe] for name in PACKAGED)
    for other in others:
        assert other.overrides == first.overrides
        assert all(other.specs.get(name, changes) == changes for name, changes in first.specs.items())
        assert set(other.specs) | {"feature_map", "filter"} == set(first.specs) | {"feature_map", "filter"}


@pytest.mark.parametrize("name", PACKAGED)
def test_every_registered_op_has_a_rule(name):
    assert {rule.use for rule in load_backend(name).rules} == set(OPS)


@pytest.mark.parametrize("name", PACKAGED)
@pytest.mark.parametrize("recipe", ["dynamic", "static", "weight-only"])
def test_kernels_take_what_the_packaged_recipes_ask_for(name, recipe):
    """All but b of a dynamic product, whose tokens lie along the summed axis."""
    backend = load_backend(name)
    wish = backend.recipe(recipe)
    refused = set()
    for rule in integer_rules(backend):
        for role in rule.roles:
            spec = backend.spec(rule, role, wish, "", rule.use)
            if spec is not None and (text := backend.refusal(rule, role, spec, (8, 8))):
                refused.add(text)
    meaningless = "kernel matmul_int8 takes b.granularity = per-tensor, the recipe asks for per-token"
    assert refused == ({meaningless} if (name, recipe) == ("reference", "dynamic") else set())


@pytest.mark.parametrize("name", PACKAGED)
def test_kernels_refuse_weights_that_are_affine_and_some_that_use_minus_128(name):
    backend = load_backend(name)
    quantized = [rule for rule in integer_rules(backend) if "weight" in rule.roles]
    assert {rule.use for rule in quantized} >= {"linear", "linear_add", "embedding"}
    for rule in quantized:
        affine = QuantSpec(granularity="per-channel", axis=0)
        full = QuantSpec(granularity="per-channel", axis=0, symmetric=True, range="full")
        assert "weight.symmetric = true" in str(backend.refusal(rule, "weight", affine, (8, 8)))
        refusal = backend.refusal(rule, "weight", full, (8, 8))
        if name == "cuda" or rule.kernel == "grouped_linear_int8":
            assert "weight.range = restricted" in str(refusal)
        else:
            assert refusal is None


@pytest.mark.parametrize("name", PACKAGED)
@pytest.mark.parametrize(
    ("recipe", "granted"), [("weight-only", True), ("weight-only-int4", True), ("dynamic", False), ("static", False)]
)
def test_weight_only_kernels_take_float_activations_alone(name, recipe, granted):
    backend = load_backend(name)
    wish = backend.recipe(recipe)
    rules = [rule for rule in backend.rules if rule.kernel == "linear_weight_only"]
    assert {rule.use for rule in rules} == {use for use in OPS if use.startswith("linear")}
    for rule in rules:
        specs = {role: backend.spec(rule, role, wish, "", rule.use) for role in rule.roles}
        texts = [backend.refusal(rule, role, spec, (8, 8)) for role, spec in specs.items() if spec is not None]
        assert (texts == [None]) is granted
        assert granted or "linear_weight_only takes x.dtype = float, the recipe asks for" in str(texts[0])


@pytest.mark.parametrize("name", ["reference", "cuda"])
def test_float8_kernels_take_the_recipe_fp8_alone(name):
    backend = load_backend(name)
    rules = [rule for rule in backend.rules if rule.kernel == "linear_fp8"]
    assert {rule.use for rule in rules} == {use for use in OPS if use.startswith("linear")}
    for recipe, granted in (("fp8", True), ("dynamic", False), ("static", False)):
        for rule in rules:
            specs = {role: backend.spec(rule, role, backend.recipe(recipe), "", rule.use) for role in rule.roles}
            assert all((backend.refusal(rule, *each, (8, 8)) is None) is granted for each in specs.items())


def test_the_reference_asks_for_integer_biases_and_x86_does_not():
    for rule in integer_rules(load_backend("reference")):
        assert (rule.roles.get("bias") == "bias") is (rule.kernel in ("linear_int8", "conv_int8"))
    assert all("bias" not in rule.roles for rule in load_backend("x86").rules)


def test_the_vocabulary_is_what_is_registered():
    vocabulary = registered_vocabulary("reference")
    assert set(vocabulary.ops["linear_add"]) == {"x", "weight", "bias", "residual", "output"}
    assert "linear_int8" in vocabulary.kernels
    assert "histogram" in vocabulary.observers


def test_a_backend_comes_back_as_it_is():
    backend = load_backend("x86")
    assert load_backend(backend) is backend


def test_a_file_of_the_users_own(mine):
    for path in (mine, str(mine)):
        backend = load_backend(path)
        assert isinstance(backend, Backend)
        assert (backend.name, backend.source) == ("mine", str(mine))


def test_a_relative_path(mine, monkeypatch):
    monkeypatch.chdir(mine.parent)
    assert load_backend("mine.toml").name == "mine"
    assert load_backend(Path("mine.toml")).name == "mine"


def test_errors_of_a_file_name_its_path(mine):
    mine.write_text(MINE.replace('use = "linear"', 'use = "liner"'))
    with pytest.raises(ConfigError, match=r"^\S*mine\.toml: \[\[op\]\] 1 \(liner\): use = 'liner' .* mean 'linear'\?"):
        load_backend(mine)


@pytest.mark.parametrize(
    ("wish", "text"),
    [
        (
            "x68",
            r"unknown backend 'x68': did you mean 'x86'\? Known: .*reference, x86\. The path of your own \.toml file",
        ),
        ("absent.toml", r"^absent\.toml: there is no such file"),
        ("folder/absent", r"^folder/absent: there is no such file"),
        (Path("absent"), r"^absent: there is no such file"),
        (3, r"backend = 3: expected a string, got int"),
        (None, r"backend = None: expected a string, got NoneType"),
    ],
    ids=["unknown name", "missing file", "missing path", "missing Path", "number", "None"],
)
def test_wrong_wishes(wish, text):
    with pytest.raises(ConfigError, match=text):
        load_backend(wish)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("name = ", r"mine\.toml:1: not valid TOML"),
        (MINE.replace('kernels = "reference"', ""), r"mine\.toml: the key 'kernels' is missing: expected a string"),
        (MINE.replace('"reference"', "3"), r"mine\.toml: kernels = 3: expected a string, got int"),
        (
            MINE.replace('"reference"', '"refrence"'),
            r"mine\.toml: unknown kernel set 'refrence': did you mean 'reference'",
        ),
        (
            MINE.replace('"linear_int8"', '"linear_in8"'),
            r"\(linear\): kernel = 'linear_in8' .*did you mean 'linear_int8'",
        ),
        (MINE.replace("symmetric = true", 'observer = "minmx"'), r"\[spec\.weight\]: observer = 'minmx' .*'minmax'\?"),
    ],
    ids=["syntax", "no kernel set", "kernel set type", "unknown kernel set", "unknown kernel", "unknown observer"],
)
def test_wrong_files(mine, text, error):
    mine.write_text(text)
    with pytest.raises(ConfigError, match=error):
        load_backend(mine)


def test_a_directory_is_no_backend(tmp_path):
    with pytest.raises(ConfigError, match="is a directory"):
        load_backend(tmp_path)


def test_what_is_for_openvino_quantizes_queries_and_keys():
    backend = load_backend("openvino")
    assert set(backend.recipes) == set(load_backend("x86").recipes)
    assert {rule.use for rule in backend.rules} == set(OPS)
    (rule,) = (rule for rule in backend.rules if rule.use == "attention")
    specs = {name: backend.spec(rule, "key", backend.recipe(name), "", "attention") for name in backend.recipes}
    static = [name for name, spec in specs.items() if spec is not None]
    assert static == ["static", "static-smoothquant"]
    assert {(specs[name].dtype, specs[name].symmetric, specs[name].dynamic) for name in static} == {
        ("int8", True, False)
    }
