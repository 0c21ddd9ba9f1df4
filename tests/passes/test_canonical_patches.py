import pytest
import torch
from canonical import after, assert_same, before, targets
from torch.nn import functional

aten = torch.ops.aten
CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
X, W, B = torch.randn(2, 3, 8, 12), torch.randn(5, 3, 4, 4), torch.randn(5)


def patches(function=functional.conv2d, **options):
    return lambda x, w, b: function(x, w, b, **options)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_patches_side_by_side_are_a_linear(axes):
    kernel = [2, 3, 4][:axes]
    x = torch.randn(2, 3, *(2 * side for side in kernel))
    weight = torch.randn(5, 3, *kernel)
    gm = before("patches_to_linear", patches(CONVOLUTIONS[axes], stride=kernel), x, w=weight, b=B, dynamic=False)
    changed, count = after("patches_to_linear", gm)
    assert count == 1
    assert aten.linear.default in targets(changed)
    assert not any("conv" in str(target) for target in targets(changed))
    assert_same(gm, changed, torch.randn_like(x), units=16)


def test_any_batch_will_do():
    gm = before("patches_to_linear", lambda x, w: functional.conv2d(x[:, :, :8, :8], w, stride=4), X, w=W)
    changed, count = after("patches_to_linear", gm)
    assert count == 1
    for batch in (0, 1, 5):
        assert_same(gm, changed, torch.randn(batch, 3, 8, 12), units=16)


def test_a_weight_read_twice_is_stored_once():
    def both(x, w, b):
        return functional.conv2d(x, w, b, stride=4), functional.conv2d(-x, w, b, stride=4)

    changed, count = after("patches_to_linear", before("patches_to_linear", both, X, w=W, b=B, dynamic=False))
    assert count == 2
    assert len({node.args[1] for node in changed.graph.nodes if node.target is aten.linear.default}) == 1


STAY = {
    "overlap": (X, {"stride": 2}),
    "gaps": (X, {"stride": 6}),
    "padding": (X, {"stride": 4, "padding": 2}),
    "dilation": (X, {"stride": 4, "dilation": (1, 2)}),
    "a rest behind the last patch": (torch.randn(2, 3, 8, 13), {"stride": 4}),
}


@pytest.mark.parametrize("case", STAY)
def test_other_convolutions_stay(case):
    x, options = STAY[case]
    gm = before("patches_to_linear", patches(**options), x, w=W, b=B, dynamic=False)
    assert after("patches_to_linear", gm)[1] == 0


def test_of_an_unknown_size_it_stays():
    gm = before("patches_to_linear", patches(stride=4), X, w=W, b=B)
    assert after("patches_to_linear", gm)[1] == 0


def test_groups_and_kernels_of_one_place_stay():
    grouped = before("patches_to_linear", patches(stride=4, groups=3), X, w=W[:3, :1], b=B[:3], dynamic=False)
    pointwise = before("patches_to_linear", patches(), X, w=W[:, :, :1, :1], b=B, dynamic=False)
    assert after("patches_to_linear", grouped)[1] == after("patches_to_linear", pointwise)[1] == 0
