"""Products with a constant matrix are linears with a weight [N, K]; others stay what they are."""

import pytest
import torch
from canonical import after, assert_same, before, story, targets
from golden import check_golden
from torch.nn import functional

from fxquant.graph import edit

aten = torch.ops.aten
K, N = 6, 5
X, TOKENS = torch.randn(4, K), torch.randn(2, 3, K)
W, B = torch.randn(K, N), torch.randn(N)

FORMS = [
    ("addmm", lambda x, w, b: torch.addmm(b, x, w), X, {"w": W, "b": B}),
    ("addmm-of-a-transpose", lambda x, w, b: torch.addmm(b, x, w.t()), X, {"w": W.t().contiguous(), "b": B}),
    ("mm", lambda x, w: torch.mm(x, mat2=w), X, {"w": W}),
    ("matmul", lambda x, w: x @ w, TOKENS, {"w": W}),
    ("matmul-of-t", lambda x, w: x @ w.t(), TOKENS, {"w": W.t().contiguous()}),
    ("matmul-of-T", lambda x, w: x @ w.T, TOKENS, {"w": W.t().contiguous()}),
    ("matmul-of-transpose", lambda x, w: x @ w.transpose(-1, -2), TOKENS, {"w": W.t().contiguous()}),
    ("matmul-of-permute", lambda x, w: x @ w.permute(1, 0), TOKENS, {"w": W.t().contiguous()}),
    ("matmul-of-two-transposes", lambda x, w: x @ w.t().t(), TOKENS, {"w": W}),
    ("linear-of-a-transpose", lambda x, w, b: functional.linear(x, w.t(), b), TOKENS, {"w": W, "b": B}),
    ("vector", lambda x, w: x[0] @ w, X, {"w": W}),
]


@pytest.mark.parametrize(("function", "x", "constants"), [each[1:] for each in FORMS], ids=[each[0] for each in FORMS])
def test_becomes_a_linear(function, x, constants):
    gm = before("products_to_linear", function, x, **constants)
    changed, count = after("products_to_linear", gm)
    assert count == 1
    linear = next(node for node in changed.graph.nodes if node.target is aten.linear.default)
    assert set(targets(changed)) <= {aten.linear.default, aten.select.int}
    weight = edit.get_tensor(changed, linear.args[1])
    assert edit.is_constant(linear.args[1]) and weight.shape == (N, K) and weight.is_contiguous()
    assert edit.info(linear) == edit.info(list(gm.graph.nodes)[-1].args[0][0])
    assert_same(gm, changed, x, units=2)
    assert after("products_to_linear", changed)[1] == 0


def test_an_addend_that_is_no_bias_is_added():
    gm = before("products_to_linear", lambda x, w: torch.addmm(x[:, :N], x, w), X, w=W)
    changed, count = after("products_to_linear", gm)
    assert count == 1
    assert targets(changed)[-2:] == [aten.linear.default, aten.add.Tensor]
    assert_same(gm, changed, X, units=2)


def test_addmm_at_run_time_is_a_product_and_an_addition():
    gm = before("products_to_linear", lambda x, y, b: torch.addmm(b, x, y), X, torch.randn(K, N), b=B)
    changed, count = after("products_to_linear", gm)
    assert count == 1 and targets(changed) == [aten.matmul.default, aten.add.Tensor]
    assert_same(gm, changed, X, torch.randn(K, N), units=2)


NEAR_MISSES = [
    ("alpha", lambda x, w, b: torch.addmm(b, x, w, alpha=2.0), {"w": W, "b": B}),
    ("beta", lambda x, w, b: torch.addmm(b, x, w, beta=0.5), {"w": W, "b": B}),
    ("constant-on-the-left", lambda x, w: w @ x, {"w": torch.randn(N, 4)}),
    ("batched-constant", lambda x, w: x @ w, {"w": torch.randn(2, K, N)}),
    ("vector", lambda x, w: x @ w, {"w": torch.randn(K)}),
    ("computed-weight", lambda x, w: x @ (w * x.sum()), {"w": W}),
    ("sliced-weight", lambda x, w: x @ w[:, : x.shape[0]], {"w": W}),
    ("already-linear", lambda x, w: functional.linear(x, weight=w), {"w": W.t().contiguous()}),
]


@pytest.mark.parametrize(("function", "constants"), [each[1:] for each in NEAR_MISSES], ids=[e[0] for e in NEAR_MISSES])
def test_stays(function, constants):
    gm = before("products_to_linear", function, X, dynamic=False, **constants)
    changed, count = after("products_to_linear", gm)
    assert count == 0 and targets(changed) == targets(gm)


def test_a_weight_is_transposed_once_and_its_source_swept():
    gm = before("products_to_linear", lambda x, w: x @ w + (2.0 * x) @ w, TOKENS, w=W)
    changed, count = after("products_to_linear", gm)
    weights = {node.args[1] for node in changed.graph.nodes if node.target is aten.linear.default}
    assert count == 2 and len(weights) == 1
    assert set(changed.state_dict()) == {"w_t"}
    torch.testing.assert_close(changed.w_t, W.t(), rtol=0, atol=0)
    assert set(gm.state_dict()) == {"w"}


def test_a_weight_that_others_read_stays_beside_its_transpose():
    gm = before("products_to_linear", lambda x, w: (x @ w) @ w.t() @ w, TOKENS, w=W)
    changed, _ = after("products_to_linear", gm)
    assert set(changed.state_dict()) == {"w", "w_t"}
    assert_same(gm, changed, TOKENS, units=4)


def test_the_path_of_the_product_is_kept():
    gm = before("products_to_linear", lambda x, w: x @ w, TOKENS, w=W)
    product = next(node for node in gm.graph.nodes if node.target is aten.matmul.default)
    edit.mark(product, path="h.0.mlp.c_fc")
    changed, _ = after("products_to_linear", gm)
    assert [edit.path_of(node) for node in changed.graph.nodes if node.target is aten.linear.default] == [
        "h.0.mlp.c_fc"
    ]


def test_golden():
    gm = before("products_to_linear", lambda x, w, b: torch.addmm(b, x.view(-1, x.size(-1)), w), TOKENS, w=W, b=B)
    check_golden("products_to_linear", story("products_to_linear", gm))
