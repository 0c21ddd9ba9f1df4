"""Rules that are used, unused, float or cannot be tried, each with its reason."""

from dataclasses import replace

import pytest
import torch

from fxquant.backends import read_backend
from fxquant.kernels.table import KERNEL_SETS
from fxquant.ops import OPS
from fxquant.passes.lowering import listed_passes
from fxquant.verification.rules import check_rules, claimant

SPECS = {
    "activation": {"dtype": "uint8", "granularity": "per-token", "dynamic": True},
    "weight": {"dtype": "int8", "granularity": "per-channel", "symmetric": True},
}
LINEAR = {"use": "linear", "kernel": "linear_int8", "x": "activation", "weight": "weight"}
STATIC = {"static": {"activation": {"granularity": "per-tensor", "dynamic": False}}}


def backend_of(*rules, **more):
    data = {"name": "mine", "kernels": "reference", "spec": SPECS, "op": list(rules), **more}
    return read_backend(data, "mine.toml")


def rows_of(*rules, **more):
    backend = backend_of(*rules, **more)
    return check_rules(backend, listed_passes(backend.passes, backend.source))


def test_a_rule_is_tried_under_every_recipe():
    rows = rows_of({**LINEAR, "output": "activation"}, recipe={"dynamic": {}, **STATIC, "w": {"activation": "float"}})
    assert [(row.number, row.recipe, row.status) for row in rows] == [
        (1, name, "ok") for name in ("dynamic", "static", "w")
    ]
    assert [row.kernel for row in rows] == ["fxquant.linear_int8", "fxquant.linear_int8", "fxquant.linear_weight_int8"]
    assert rows[1].scheme == "x uint8 per-tensor, weight int8 per-channel, output uint8 per-tensor"
    assert rows[1].difference in (0, 1), "whole output steps where the kernel requantizes"
    assert 0 <= rows[0].difference < 0.001


def test_a_file_without_recipes_is_tried_as_it_stands():
    (row,) = rows_of(LINEAR)
    assert (row.recipe, row.status) == ("(specs as they stand)", "ok")


def test_a_rule_without_a_kernel_stays_in_the_qdq_form():
    (row,) = rows_of({key: value for key, value in LINEAR.items() if key != "kernel"})
    assert (row.status, row.kernel, row.difference) == ("ok", "Q/DQ", 0)


UNUSED = {
    "an earlier rule": ((LINEAR, LINEAR), {}, "rule 1 (linear) claims it first"),
    "float under every recipe": (
        (LINEAR,),
        {"recipe": {"a": {"weight": "float"}, "b": {"weight": "float", "activation": "float"}}},
        "a, b: the recipe leaves the weight and inputs of linear in float",
    ),
    "its kernel's own limits": (
        (LINEAR,),
        {"recipe": {"a": {}}, "kernel": {"linear_int8": {"x": {"dtype": "int8"}}}},
        "a: kernel linear_int8 takes x.dtype = int8, the recipe asks for uint8",
    ),
    "a note behind another rule": (
        (LINEAR, {"use": "linear", "note": "why not"}),
        {},
        "rule 1 for linear stands before it and answers for every match",
    ),
}


@pytest.mark.parametrize(("rules", "more", "reason"), UNUSED.values(), ids=UNUSED)
def test_rules_that_nothing_leads_to(rules, more, reason):
    last = rows_of(*rules, **more)[-1]
    assert (last.number, last.status) == (len(rules), "unused")
    assert reason in last.reason


def test_a_rule_that_comes_later_may_be_the_one_of_another_recipe():
    wide = {"linear_int8": {"x": {"granularity": "per-token"}}}
    rows = rows_of(
        LINEAR, {**LINEAR, "kernel": "linear_weight_only"}, recipe={"w": {"activation": "float"}, **STATIC}, kernel=wide
    )
    found = [(row.number, row.recipe, row.status) for row in rows]
    assert found == [(1, "w", "ok"), (2, "static", "failed")], "the second kernel refuses activations in 8 bits"
    assert "the activations have to stay in float" in rows[1].reason


def test_a_larger_pattern_goes_first_wherever_it_stands():
    backend = backend_of(LINEAR, {**LINEAR, "use": "linear_relu"})
    recipe = backend.recipe({"spec": {}})
    assert claimant(backend, "linear_relu", recipe).use == "linear_relu"
    assert claimant(backend, "linear", recipe).use == "linear"


def test_an_op_without_an_example_is_not_tried(monkeypatch):
    monkeypatch.setitem(OPS._entries, "unknown_linear", replace(OPS["linear"], name="unknown_linear", example=None))
    kernel = KERNEL_SETS["reference"]["linear_int8"]
    serving = replace(kernel, serves=kernel.serves | {"unknown_linear"})
    monkeypatch.setitem(KERNEL_SETS["reference"]._entries, "linear_int8", serving)
    (row,) = rows_of({**LINEAR, "use": "unknown_linear"})
    assert row.status == "not tried"
    assert "quant_op(example=…)" in row.reason


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (lambda *args: torch.zeros(6, 16), "output steps from the Q/DQ form"),
        (lambda *args: torch.zeros(6, 15), "nan output steps from the Q/DQ form"),
        (lambda *args: 1 / 0, "ZeroDivisionError"),
    ],
    ids=["wrong numbers", "wrong shape", "raises"],
)
def test_a_kernel_that_does_not_do_its_work_fails(monkeypatch, wrong, text):
    kernel = KERNEL_SETS["reference"]["linear_int8"]

    def emit(site):
        return site.emit(wrong, site.read("x").value)

    monkeypatch.setitem(KERNEL_SETS["reference"]._entries, "linear_int8", replace(kernel, emit=emit))
    (row,) = rows_of(LINEAR)
    assert row.status == "failed"
    assert text in row.reason
