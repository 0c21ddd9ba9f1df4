"""Calls that mean the same are written the same."""

import pytest
import torch
from canonical import after, assert_same, before, story, targets
from golden import check_golden
from torch.nn import functional

from fxquant.passes.canonical_facts import has_mutation

aten = torch.ops.aten
X = torch.randn(4, 6)

SPELLINGS = [
    ("view", lambda x: x.view(-1, 3), aten.reshape.default),
    ("view-as", lambda x: x.view_as(torch.ones(3, 8)), aten.reshape.default),
    ("reshape-as", lambda x: x.reshape_as(torch.ones(24)), aten.reshape.default),
    ("t", lambda x: x.t(), aten.transpose.int),
    ("numpy-T", lambda x: x.T, aten.transpose.int),
    ("mm", lambda x: torch.mm(x, x.transpose(0, 1)), aten.matmul.default),
    ("bmm", lambda x: torch.bmm(x.reshape(2, 2, 6), x.reshape(2, 6, 2)), aten.matmul.default),
    ("swapaxes", lambda x: torch.swapaxes(x, 0, 1), aten.transpose.int),
    ("matrix-transpose", lambda x: x.reshape(2, 2, 6).mT, aten.transpose.int),
    ("adjoint", lambda x: x.adjoint(), aten.transpose.int),
    ("special-softmax", lambda x: torch.special.softmax(x, -1), aten.softmax.int),
    ("square", lambda x: torch.square(x + 0.5), aten.pow.Tensor_Scalar),
    ("concat", lambda x: torch.concat([x, x]), aten.cat.default),
    ("multiply", lambda x: torch.multiply(x, x), aten.mul.Tensor),
    ("true-divide", lambda x: torch.true_divide(x, 2.0), aten.div.Tensor),
    ("subtract", lambda x: torch.subtract(x, x, alpha=2), aten.sub.Tensor),
    ("linalg-matmul", lambda x: torch.linalg.matmul(x, x.transpose(0, 1)), aten.matmul.default),
    ("half", lambda x: x.half(), aten.to.dtype),
    ("to-dtype", lambda x: x.to(torch.float64), aten.to.dtype),
    ("to-copy-flag", lambda x: x.to(torch.float64, copy=True), aten.to.dtype),
    ("to-device-and-dtype", lambda x: x.to("cpu", torch.int32), aten.to.dtype),
    ("to-layout", lambda x: aten.to.dtype_layout(x, dtype=torch.int32, layout=torch.strided), aten.to.dtype),
    ("to-other", lambda x: x.to(torch.ones(1, dtype=torch.int8)), aten.to.dtype),
    ("type-as", lambda x: x.type_as(torch.ones(1, dtype=torch.int8)), aten.to.dtype),
    ("to-copy", lambda x: aten._to_copy.default(x, dtype=torch.float64), aten.to.dtype),
]


@pytest.mark.parametrize(("function", "target"), [each[1:] for each in SPELLINGS], ids=[each[0] for each in SPELLINGS])
def test_one_spelling(function, target):
    gm = before("unify_spelling", function, X, dynamic=False)
    changed, count = after("unify_spelling", gm)
    assert count >= (1 if target is not aten.to.dtype else 0)
    assert targets(changed)[-1] is target
    assert_same(gm, changed, X)
    assert after("unify_spelling", changed)[1] == 0


def test_all_casts_are_spelled_alike():
    gm = before("unify_spelling", lambda x: (x.to("cpu", torch.int32), x.to(torch.int32, copy=True)), X)
    changed, count = after("unify_spelling", gm)
    casts = [node for node in changed.graph.nodes if node.target is aten.to.dtype]
    assert count == 2 and [node.args[1:] for node in casts] == [(torch.int32, False, False, None)] * 2


NEAR_MISSES = [
    ("view-of-another-dtype", lambda x: x.view(torch.int32)),
    ("transpose-of-one-dimension", lambda x: x.reshape(24).t()),
]


@pytest.mark.parametrize("function", [each[1] for each in NEAR_MISSES], ids=[each[0] for each in NEAR_MISSES])
def test_another_meaning_keeps_its_spelling(function):
    gm = before("unify_spelling", function, X, dynamic=False)
    assert targets(after("unify_spelling", gm)[0]) == targets(gm)


def test_where_a_tensor_is_written_to_a_cast_keeps_its_copy():
    def function(x):
        copied = x.to(torch.float32, copy=True)
        return functional.relu(copied.reshape(24), inplace=True), copied

    gm = before("unify_spelling", function, X, dynamic=False)
    assert has_mutation(gm)
    changed, _ = after("unify_spelling", gm)
    cast = next(node for node in changed.graph.nodes if node.target is aten.to.dtype)
    assert cast.args[1:] == (torch.float32, False, True, None)


def test_golden():
    def function(x):
        flat = x.view(x.shape[0], -1)
        return torch.mm(flat, flat.t().to("cpu", torch.float64).float())

    gm = before("unify_spelling", function, torch.randn(4, 2, 3))
    check_golden("unify_spelling", story("unify_spelling", gm))


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize(("kernel", "dilation"), [((3, 5), 1), ((2, 3), 1), ((4, 2), (1, 3))])
def test_padding_of_convolutions_is_in_numbers(padding, kernel, dilation):
    weight = torch.randn(4, 3, *kernel)
    gm = before(
        "unify_spelling",
        lambda x, w: torch.nn.functional.conv2d(x, w, padding=padding, dilation=dilation),
        torch.randn(2, 3, 9, 11),
        w=weight,
    )
    changed, _ = after("unify_spelling", gm)
    assert [node.args[4] for node in changed.graph.nodes if node.target is aten.conv2d.default]
    assert_same(gm, changed, torch.randn(1, 3, 12, 10), units=8)
