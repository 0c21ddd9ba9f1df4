"""Arithmetic on small constants is done ahead, to the same bits."""

import pytest
import torch
from canonical import after, assert_same, before, story, targets
from golden import check_golden

aten = torch.ops.aten
X, W = torch.randn(3, 4), torch.randn(4)

FOLDED = [
    ("one-plus", lambda x, w: x * (1.0 + w), W),
    ("chain", lambda x, w: x * torch.sqrt(w * w + 2.0) - w / 3, W),
    ("cast", lambda x, w: x * w.to(torch.float64), W),
    ("scalar", lambda x, w: x / w.sqrt(), torch.tensor(16.0)),
]
NEAR_MISSES = [
    ("reads-an-input", lambda x, w: x * (x[0] + w), W),
    ("matrix", lambda x, w: x * (w + 1.0), torch.randn(3, 4)),
    ("not-exactly-rounded", lambda x, w: x * w.exp(), W),
]


@pytest.mark.parametrize(("function", "w"), [each[1:] for each in FOLDED], ids=[each[0] for each in FOLDED])
def test_is_folded(function, w):
    gm = before("fold_constants", function, X, w=w)
    changed, count = after("fold_constants", gm)
    assert count >= 1
    assert len(targets(changed)) == len(targets(gm)) - count
    assert all(node.args[0].op != "get_attr" for node in changed.graph.nodes if node.op == "call_function")
    assert_same(gm, changed, X)


@pytest.mark.parametrize(("function", "w"), [each[1:] for each in NEAR_MISSES], ids=[each[0] for each in NEAR_MISSES])
def test_stays(function, w):
    gm = before("fold_constants", function, X, w=w, dynamic=False)
    assert after("fold_constants", gm)[1] == 0


def test_the_result_is_named_after_its_source_and_the_source_stays_for_others():
    gm = before("fold_constants", lambda x, w: x * (1.0 + w) + w, X, w=W)
    changed, _ = after("fold_constants", gm)
    state = dict(changed.named_buffers()) | dict(changed.named_parameters())
    assert set(state) == {"w", "w_add"}
    torch.testing.assert_close(state["w_add"], 1.0 + W, rtol=0, atol=0)
    assert gm.w is changed.w and not hasattr(gm, "w_add")


def test_golden():
    gm = before("fold_constants", lambda x, w: x * (1.0 + w), X, w=W)
    check_golden("fold_constants", story("fold_constants", gm))
