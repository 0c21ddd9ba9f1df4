"""FxQuantConfig: what it takes, what config.json keeps of it, and which modules it skips."""

import copy
import json

import models
import pytest
from transformers.quantizers.auto import AutoQuantizationConfig

import fxquant as fxq
from fxquant.integrations.hf.skips import skipped_modules
from fxquant.integrations.transformers import FxQuantConfig

PATHS = [path for path, _ in models.bert_classifier()[0].named_modules() if path]


@pytest.mark.parametrize(
    "config",
    [
        FxQuantConfig(),
        FxQuantConfig("weight-only", "reference", ["pooler"], strict=True, padded_outputs="zero"),
        FxQuantConfig(
            fxq.Recipe(base="static", overrides=[fxq.Override(path="pooler.*", quantize=False)]),
            fxq.load_backend("reference"),
        ),
    ],
    ids=["defaults", "names", "objects"],
)
def test_json_holds_all_that_is_kept(config):
    again = AutoQuantizationConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert type(again) is FxQuantConfig
    assert (again.to_dict(), again.recipe) == (config.to_dict(), config.recipe)
    assert dict(again) == config.to_dict()
    assert json.loads(config.to_json_string()) == config.to_dict()


def test_a_recipe_file_is_kept_by_its_contents(tmp_path):
    (tmp_path / "careful.toml").write_text('base = "static"\n[spec]\nweight = "float"\n')
    config = FxQuantConfig(str(tmp_path / "careful.toml"))
    assert config.to_dict()["recipe"] == {
        "name": "careful",
        "base": "static",
        "spec": {"weight": "float"},
        "override": [],
    }


def test_copies_share_a_generator_of_batches():
    config = FxQuantConfig("static", calibration=iter([]))
    assert copy.deepcopy(config).calibration is config.calibration
    assert "calibration" not in config.to_dict()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"recipe": "dynamik"}, "unknown recipe 'dynamik' for backend x86: did you mean 'dynamic'"),
        ({"backend": "x68"}, "unknown backend 'x68': did you mean 'x86'"),
        ({"modules_to_not_convert": "lm_head"}, "'lm_head': expected a list of paths of modules"),
        ({"padded_outputs": "one"}, "padded_outputs"),
        ({"strict": 1}, "strict = 1: expected true or false"),
        ({"quant_method": "gptq"}, "quant_method = 'gptq': an FxQuantConfig is of 'fxquant'"),
        ({"recipes": "dynamic"}, "unknown key 'recipes': did you mean 'recipe'"),
    ],
)
def test_what_cannot_be_meant(given, message):
    with pytest.raises(fxq.ConfigError, match=message):
        FxQuantConfig.from_dict(given)


def test_skipped_modules_by_start_end_and_expression():
    assert skipped_modules(PATHS, [], "B") == []
    assert skipped_modules(PATHS, ["bert.encoder.layer.1"], "B") == ["bert.encoder.layer.1"]
    dense = [f"bert.encoder.layer.{layer}.intermediate.dense" for layer in range(2)]
    assert skipped_modules(PATHS, ["intermediate.dense"], "B") == dense
    assert skipped_modules(PATHS, [r"bert\.encoder\.layer\.\d\.intermediate"], "B") == [
        path.removesuffix(".dense") for path in dense
    ]


def test_skipping_what_is_not_there():
    with pytest.warns(fxq.FxQuantWarning, match="'clasifier' is no module of a Bert; did you mean 'classifier'"):
        assert skipped_modules(PATHS, ["clasifier"], "Bert") == []
    with pytest.raises(fxq.ConfigError, match=r"'\(' is no regular expression"):
        skipped_modules(PATHS, ["("], "Bert")


def test_skips_come_before_the_overrides_of_the_recipe():
    own = fxq.Override(path="*", specs={"activation": "float"})
    wish = FxQuantConfig(fxq.Recipe(overrides=[own])).wish(["pooler"])
    assert [each.path for each in wish.overrides] == ["pooler", "pooler.*", "*"]
    assert FxQuantConfig("static").wish([]).base == "static"
