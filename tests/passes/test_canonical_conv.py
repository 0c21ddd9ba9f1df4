import pytest
import torch
from canonical import after, assert_same, before, targets
from torch.nn.functional import conv1d, layer_norm

aten = torch.ops.aten
pytestmark = pytest.mark.filterwarnings("ignore:dimension 1")
X, W, B = torch.randn(2, 6, 5), torch.randn(4, 6, 1), torch.randn(4)
BACK = torch.randn(6, 4, 1)


def test_kernel_of_one_is_a_linear():
    gm = before("pointwise_to_linear", conv1d, X, weight=W, bias=B)
    changed, count = after("pointwise_to_linear", gm)
    assert count == 1
    assert targets(changed) == [aten.transpose.int, aten.linear.default, aten.transpose.int]
    assert_same(gm, changed, torch.randn(3, 6, 9), units=8)


def test_transposes_between_linears_and_norms_go():
    def squeezed(x, w, b, back):
        y = conv1d(conv1d(x, w, b), back)
        return layer_norm(y.permute(0, 2, 1), [6]).permute(0, 2, 1)

    gm = before("pointwise_to_linear", squeezed, X, w=W, b=B, back=BACK)
    changed, count = after("pointwise_to_linear", gm)
    names = [str(target) for target in targets(changed)]
    assert count == 2 and names.count("aten.linear.default") == 2
    assert sum("transpose" in name or "permute" in name for name in names) == 2
    assert_same(gm, changed, X, units=16)


def test_groups_are_linears_on_their_columns():
    x, weight = torch.randn(2, 32, 5), torch.randn(16, 16, 1)
    gm = before("pointwise_to_linear", lambda x, w, b: conv1d(x, w, b, groups=2), x, w=weight, b=torch.randn(16))
    changed, count = after("pointwise_to_linear", gm)
    assert (
        count == 1 and targets(changed).count(aten.linear.default) == 2 and aten.conv1d.default not in targets(changed)
    )
    assert_same(gm, changed, torch.randn(3, 32, 9), units=16)


@pytest.mark.parametrize(
    "options", [{"stride": 2}, {"padding": 1}, {"groups": 2}], ids=["stride", "padding", "narrow-groups"]
)
def test_other_convolutions_stay(options):
    weight = W[:, :3] if "groups" in options else W
    gm = before("pointwise_to_linear", lambda x, w, b: conv1d(x, w, b, **options), X, w=weight, b=B)
    assert after("pointwise_to_linear", gm)[1] == 0
