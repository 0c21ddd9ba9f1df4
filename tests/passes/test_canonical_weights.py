import pytest
import torch
from canonical import after, assert_same, before, targets
from torch.nn.functional import conv1d, linear

from fxquant.graph import edit

aten = torch.ops.aten
X, W, B = torch.randn(2, 3, 6), torch.randn(12, 6), torch.randn(12)
FOLDED = [
    ("split", lambda x, w, b: linear(x, w.split([4, 8])[1], b.split([4, 8])[1])),
    ("chunk", lambda x, w, b: linear(x, w.chunk(3)[0], b.chunk(3)[2])),
    ("slice", lambda x, w, b: linear(x, w[2:5], b[:3])),
    ("joined", lambda x, w, b: linear(x, torch.cat([w, w]), torch.cat([b, b]))),
]


@pytest.mark.parametrize("function", [each[1] for each in FOLDED], ids=[each[0] for each in FOLDED])
def test_weights_computed_from_parameters_are_constants(function):
    gm = before("fold_weights", function, X, w=W, b=B)
    changed, count = after("fold_weights", gm)
    assert count == 2 and targets(changed) == [aten.linear.default]
    assert_same(gm, changed, X)


@pytest.mark.filterwarnings("ignore:dimension 1")
def test_weight_norm_is_made_once():
    v, g = torch.randn(8, 3, 5), torch.rand(1, 1, 5)
    gm = before("fold_weights", lambda x, v, g: conv1d(x, torch._weight_norm(v, g, 2)), X, v=v, g=g)
    changed, count = after("fold_weights", gm)
    assert count == 1 and targets(changed) == [aten.conv1d.default]
    assert_same(gm, changed, X)


def test_slices_share_memory_and_two_readers_one_constant():
    def twice(x, w, b):
        part = w[:6]
        return linear(linear(x, part), part)

    changed, _ = after("fold_weights", before("fold_weights", twice, X, w=W, b=B))
    first, second = changed.graph.find_nodes(op="call_function", target=aten.linear.default)
    assert first.args[1] is second.args[1]
    assert edit.get_tensor(changed, first.args[1]).data_ptr() == W.data_ptr()


def test_what_reads_an_input_stays():
    gm = before("fold_weights", lambda x, w, b: linear(x, w * x.mean(), b), X, w=W, b=B)
    assert after("fold_weights", gm)[1] == 0
