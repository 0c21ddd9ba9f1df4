"""What provably hands on its input goes; what only looks like it stays."""

import pytest
import torch
from canonical import after, assert_same, before, story, targets
from golden import check_golden
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from fxquant.graph import edit

aten = torch.ops.aten
X = torch.randn(3, 4)
INTEGERS = torch.arange(12).reshape(3, 4)


def then_neg(function):
    """Return the function with a call behind it, so that no output is an input."""
    return lambda x: torch.neg(function(x))


NOOPS = [
    ("dropout-at-inference", lambda x: functional.dropout(x, 0.5, training=False), X),
    ("dropout-of-nothing", lambda x: functional.dropout(x, 0.0, training=True), X),
    ("feature-dropout", lambda x: aten.feature_dropout.default(x, 0.5, False), X),
    ("alpha-dropout", lambda x: functional.alpha_dropout(x, 0.5, training=False), X),
    ("feature-alpha-dropout", lambda x: functional.feature_alpha_dropout(x, 0.5, training=False), X),
    ("alias", aten.alias.default, X),
    ("detach", lambda x: x.detach(), X),
    ("clone", lambda x: x.clone(), X),
    ("contiguous", lambda x: x.t().contiguous().t(), X),
    ("lift-fresh-copy", aten.lift_fresh_copy.default, X),
    ("to-dtype", lambda x: x.to(torch.float32), X),
    ("to-dtype-as-a-copy", lambda x: x.to(torch.float32, copy=True), X),
    ("to-device", lambda x: x.to("cpu", torch.float32), X),
    ("to-other", lambda x: x.to(torch.ones(2)), X),
    ("type-as", lambda x: x.type_as(torch.ones(2)), X),
    ("float", lambda x: x.float(), X),
    ("expand", lambda x: x.expand(x.shape[0], -1), X),
    ("view", lambda x: x.view(x.shape), X),
    ("reshape", lambda x: x.reshape(x.shape[0], -1), X),
    ("flatten-one", lambda x: x.flatten(1), X),
    ("slice-of-everything", lambda x: x[:], X),
    ("slice-to-the-size", lambda x: x[:, : x.shape[1]], X),
    ("permute-nothing", lambda x: x.permute(0, 1), X),
    ("transpose-nothing", lambda x: x.transpose(1, 1), X),
    ("repeat-once", lambda x: x.repeat(1, 1), X),
    ("times-one", lambda x: x * 1.0, X),
    ("times-integer-one", lambda x: x * 1, X),
    ("over-one", lambda x: x / 1.0, X),
    ("minus-zero", lambda x: x - 0.0, X),
    ("integers-plus-zero", lambda x: x + 0, INTEGERS),
    ("integers-times-one", lambda x: x * 1, INTEGERS),
    ("two", lambda x: functional.dropout(x.clone() * 1.0, 0.1, training=False), X),
]
NEAR_MISSES = [
    ("dropout-at-training", lambda x: functional.dropout(x, 0.5, training=True), X),
    ("clone-in-another-order", lambda x: x.t(), X),
    ("cast", lambda x: x.to(torch.float64), X),
    ("cast-of-integers", lambda x: x.float(), INTEGERS),
    ("expand", lambda x: x[:, :1].expand(-1, 4), X),
    ("reshape", lambda x: x.reshape(4, 3), X),
    ("slice", lambda x: x[1:], X),
    ("slice-with-a-step", lambda x: x[::2], X),
    ("slice-by-the-example", lambda x: x[:3], torch.randn(5, 4)),
    ("transpose", lambda x: x.transpose(0, 1), X),
    ("repeat", lambda x: x.repeat(1, 2), X),
    ("times-two", lambda x: x * 2.0, X),
    ("integers-times-float-one", lambda x: x * 1.0, INTEGERS),
    ("integers-over-one", lambda x: x / 1, INTEGERS),
    ("plus-zero-loses-the-sign-of-zero", lambda x: x + 0.0, X),
    ("minus-one", lambda x: x - 1, X),
    ("broadcast-times-one", lambda x: torch.mul(x[:1], torch.ones(3, 1)), X),
]


@pytest.mark.parametrize(("function", "x"), [each[1:] for each in NOOPS], ids=[each[0] for each in NOOPS])
def test_goes(function, x):
    gm = before("remove_noops", then_neg(function), x)
    changed, count = after("remove_noops", gm)
    remaining = [target for target in targets(changed) if target not in (aten.transpose.int, aten.sym_size.int)]
    assert count >= 1
    assert remaining == [aten.neg.default]
    assert_same(gm, changed, x)
    assert after("remove_noops", changed)[1] == 0


@pytest.mark.parametrize(("function", "x"), [each[1:] for each in NEAR_MISSES], ids=[each[0] for each in NEAR_MISSES])
def test_stays(function, x):
    gm = before("remove_noops", then_neg(function), x, dynamic=False)
    changed, _ = after("remove_noops", gm)
    kept = [target for target in targets(gm) if target not in (aten.lift_fresh_copy.default, aten.detach_.default)]
    assert targets(changed) == kept


@pytest.mark.parametrize(("dynamic", "changes"), [(False, 1), (True, 0)], ids=["fixed", "may-vary"])
def test_of_stored_types_only_fixed_sizes_are_compared(dynamic, changes):
    gm = before("remove_noops", then_neg(lambda x: x.reshape(x.shape[0], -1)), X)
    for node in gm.graph.nodes:
        node.meta.pop("val", None)
        edit.mark(node, value=edit.TensorInfo(torch.float32, (3, 4), (dynamic, False)).to_dict())
    assert after("remove_noops", gm)[1] == changes


def test_a_copy_stays_where_a_tensor_is_written_to():
    def function(x):
        kept = functional.dropout(x, 0.5, training=False).clone()
        functional.relu(kept.reshape(-1), inplace=True)
        return kept - x

    gm = before("remove_noops", function, X)
    changed, count = after("remove_noops", gm)
    assert aten.clone.default in targets(changed) and aten.dropout.default not in targets(changed)
    assert count == 1
    x = X.clone()
    assert_same(gm, changed, x)
    assert torch.equal(x, X), "the input is as it was"


@pytest.mark.parametrize("function", [lambda x: x.clone(), lambda x: x * 1.0], ids=["clone", "times-one"])
def test_an_output_does_not_become_the_input_itself(function):
    gm = before("remove_noops", function, X)
    changed, count = after("remove_noops", gm)
    assert count == 0
    assert changed(X).data_ptr() != X.data_ptr()


def test_assertions_go():
    gm = before("remove_noops", lambda x: x.neg(), X)
    x, neg = list(gm.graph.nodes)[:2]
    with gm.graph.inserting_before(neg):
        gm.graph.call_function(aten._assert_tensor_metadata.default, (x, None, None, torch.float32))
    changed, count = after("remove_noops", gm)
    assert count == 1 and targets(changed) == [aten.neg.default]


def test_the_paths_of_what_stays_are_kept():
    gm = before("remove_noops", then_neg(lambda x: x.clone()), X)
    neg = next(node for node in gm.graph.nodes if node.target is aten.neg.default)
    edit.mark(neg, path="layer.0")
    changed, _ = after("remove_noops", gm)
    assert [edit.path_of(node) for node in changed.graph.nodes if node.target is aten.neg.default] == ["layer.0"]


NUMBERS = before("remove_noops", then_neg(lambda x: (x * 1.0 - 0.0) / 1.0), X)
CHANGED = after("remove_noops", NUMBERS)[0]


@given(st.lists(st.floats(width=32, allow_nan=True), min_size=1, max_size=6))
def test_every_bit_is_kept_the_sign_of_zero_too(values):
    x = torch.tensor([values, values], dtype=torch.float32)
    expected, found = NUMBERS(x), CHANGED(x)
    assert torch.equal(expected.signbit() & ~expected.isnan(), found.signbit() & ~found.isnan())
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_golden():
    def function(x):
        hidden = functional.dropout(x, 0.1, training=False).contiguous()
        return torch.neg(hidden[:].expand(x.shape[0], -1).to(torch.float32) * 1.0), hidden.to(torch.float64)

    check_golden("remove_noops", story("remove_noops", before("remove_noops", function, X)))
