"""Limits are found by trying: what holds, what the file allows, and where the two differ."""

import pytest

from fxquant.backends import read_backend
from fxquant.verification.limits import probe
from fxquant.verification.tables import limits_tables

WEIGHT = {"dtype": "int8", "granularity": ["per-tensor", "per-channel"], "axis": 0, "symmetric": True}


def probed(limits, kernels="reference"):
    data = {
        "name": "mine",
        "kernels": kernels,
        "spec": {"weight": {"dtype": "int8", "granularity": "per-channel", "symmetric": True}},
        "op": [{"use": "embedding", "kernel": "embedding_int8", "weight": "weight"}],
        "kernel": {"embedding_int8": {"weight": limits}} if limits is not None else {},
    }
    return {(row.role, row.numbers, row.scales): row for row in probe(read_backend(data, "mine.toml"))}


@pytest.fixture(scope="module")
def exact():
    return probed({**WEIGHT, "range": "restricted", "inner_multiple_of": 4})


def test_what_is_allowed_holds(exact):
    row = exact["weight", "int8 symmetric", "per-channel 0"]
    assert (row.promised, row.holds, row.reason) == (True, True, "")
    assert not any(row.broken for row in exact.values())


def test_what_is_not_allowed_may_hold_nevertheless(exact):
    row = exact["weight", "int8 symmetric full", "per-tensor"]
    assert (row.promised, row.holds) == (False, True)


def test_what_the_kernel_refuses_does_not_hold(exact):
    row = exact["weight", "int8 affine", "per-tensor"]
    assert (row.promised, row.holds) == (False, False)
    assert "the weight has to be int8, symmetric" in row.reason
    for scales in ("per-channel 1", "per-group 16", "per-group 5"):
        assert not exact["weight", "int8 symmetric", scales].holds


def test_sizes_are_tried_beside_what_the_file_allows(exact):
    assert exact["", "inner", "6"].holds
    assert not exact["", "inner", "6"].promised
    assert exact["", "inner", "12"].promised


def test_schemes_that_cannot_be_are_left_out(exact):
    assert {key[2] for key in exact if key[0] == "weight"} == {
        "per-tensor", "per-channel 0", "per-channel 1", "per-group 16", "per-group 5",
    }  # fmt: skip
    assert not any("int32" in key[1] for key in exact)


def test_a_promise_that_does_not_hold():
    broken = [key for key, row in probed({key: WEIGHT[key] for key in ("dtype", "symmetric")}).items() if row.broken]
    assert ("weight", "int8 symmetric", "per-group 5") in broken
    assert ("weight", "int8 affine", "per-tensor") not in broken


def test_of_a_role_without_limits_only_what_the_kernel_takes_is_promised():
    rows = probed(None)
    assert not rows["weight", "int8 affine", "per-tensor"].promised
    assert rows["weight", "int8 symmetric", "per-tensor"].promised
    assert not any(row.broken for row in rows.values())


def test_tables(exact):
    text = limits_tables([*exact.values(), *probed({"dtype": "int8"}).values()])
    lines = [line.split() for line in text.splitlines()]
    assert lines[0][:5] == ["embedding_int8", "weight", "per-tensor", "per-channel", "0"]
    assert ["int8", "affine", "FAILS"] in [line[:3] for line in lines]
    assert "1 +, 3 +, 4, 6 +, 8, 12, 16, 31 +" in limits_tables(list(exact.values()))
