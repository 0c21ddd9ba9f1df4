"""Sums over index letters become linears and products, and give the same numbers."""

import pytest
import torch
from canonical import after, assert_same, before, story, targets
from golden import check_golden

aten = torch.ops.aten
pytestmark = pytest.mark.filterwarnings("ignore:dimension")
LINEAR, MATMUL = aten.linear.default, aten.matmul.default


def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


X, W = draw(5, 2, 6), draw(6, 3, 4)
HEADS = draw(5, 2, 3, 4)
CONSTANT = {
    # equation over an input and a constant: their shapes
    "ibh,hnd->ibnd": (X, W),
    "hnd,ibh->bnid": (X, W),
    "ibnd,hnd->ibh": (HEADS, draw(6, 3, 4)),
    "ibnd,snd->ibs": (HEADS, draw(2, 3, 4)),
    "bi,i->b": (draw(5, 6), draw(6)),
    "...h,hd->...d": (X, draw(6, 4)),
    "ibh,hd": (X, draw(6, 4)),
    "ibnd,n->ibd": (HEADS, draw(3)),
}


@pytest.mark.parametrize("equation", CONSTANT)
def test_a_constant_factor_makes_a_linear(equation):
    x, w = CONSTANT[equation]
    swapped = equation.startswith("hnd")
    gm = before("einsum_to_products", lambda x, w: torch.einsum(equation, *((w, x) if swapped else (x, w))), x, w=w)
    changed, count = after("einsum_to_products", gm)
    assert count == 1 and targets(changed).count(LINEAR) == 1
    assert not {aten.einsum.default, MATMUL} & set(targets(changed))
    assert_same(gm, changed, torch.cat([x, x])[1:], units=16)


VARYING = {
    "ibnd,jbnd->bnij": (HEADS, draw(7, 2, 3, 4)),
    "bnij,jbnd->ibnd": (draw(2, 3, 5, 7), draw(7, 2, 3, 4)),
    "ibnd,jbnd->ijbn": (HEADS, draw(7, 2, 3, 4)),
    "bd,cd->bc": (draw(3, 4), draw(5, 4)),
    "bi,bj->bij": (draw(3, 4), draw(3, 5)),
    "bij,bij->b": (draw(3, 4, 5), draw(3, 4, 5)),
    "abc,cbd->ad": (draw(2, 3, 4), draw(4, 3, 5)),
}


@pytest.mark.parametrize("equation", VARYING)
def test_two_inputs_make_a_product(equation):
    gm = before("einsum_to_products", lambda x, y: torch.einsum(equation, x, y), *VARYING[equation])
    changed, count = after("einsum_to_products", gm)
    assert count == 1 and targets(changed).count(MATMUL) == 1 and aten.einsum.default not in targets(changed)
    assert_same(gm, changed, *VARYING[equation], units=16)


def test_batch_letters_of_a_constant_make_a_product():
    gm = before("einsum_to_products", lambda x, w: torch.einsum("ibnd,nde->ibne", x, w), HEADS, w=draw(3, 4, 6))
    changed, _ = after("einsum_to_products", gm)
    assert MATMUL in targets(changed) and LINEAR not in targets(changed)
    assert_same(gm, changed, draw(9, 4, 3, 4), units=16)


def test_three_factors_are_multiplied_from_the_left():
    def function(x, a, b):
        return torch.einsum("ih,hr,ro->io", x, a, b)

    gm = before("einsum_to_products", function, draw(5, 6), a=draw(6, 3), b=draw(3, 4))
    changed, _ = after("einsum_to_products", gm)
    assert targets(changed) == [LINEAR, LINEAR]
    assert_same(gm, changed, draw(8, 6), units=16)


def test_one_factor_is_a_permutation():
    gm = before("einsum_to_products", lambda x: torch.einsum("ijbn->bnij", x), HEADS)
    changed, _ = after("einsum_to_products", gm)
    assert targets(changed) == [aten.permute.default]
    assert_same(gm, changed, HEADS)


@pytest.mark.parametrize("axes", [1, ([1, 2], [1, 0])], ids=["last", "two"])
def test_tensordot(axes):
    w = draw(6, 4) if axes == 1 else draw(6, 2, 4)
    gm = before("einsum_to_products", lambda x, w: torch.tensordot(x, w, axes), X, w=w)
    changed, _ = after("einsum_to_products", gm)
    assert targets(changed).count(LINEAR) == 1
    assert_same(gm, changed, X, units=16)


OTHERS = {
    "inner": (lambda x, w: torch.inner(x + 1, w), X, (4, 6)),
    "inner-swapped": (lambda x, w: torch.inner(w, x), X, (4, 6)),
    "mv": (lambda x, w: torch.mv(w, x), draw(6), (4, 6)),
    "addmv": (lambda x, w: torch.addmv(x[:4], w, x), draw(6), (4, 6)),
    "addbmm": (lambda x, w: torch.addbmm(x[0, :, :4], x, w), draw(3, 5, 6), (3, 6, 4)),
    "bilinear": (lambda x, w: torch.nn.functional.bilinear(x, x + 1, w, w[:, 0, 0]), X, (4, 6, 6)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_sums(name):
    function, x, shape = OTHERS[name]
    gm = before("einsum_to_products", function, x, w=draw(*shape))
    changed, count = after("einsum_to_products", gm)
    products = [target for target in targets(changed) if target in (LINEAR, MATMUL)]
    assert count == 1 and products == [LINEAR, MATMUL][: 2 if name == "bilinear" else 1]
    assert name.partition("-")[0] not in {str(target).split(".")[1] for target in targets(changed)}
    assert_same(gm, changed, x, units=32)


def test_factors_other_than_one_stay():
    gm = before("einsum_to_products", lambda x, w: torch.addmv(x[:4], w, x, alpha=2), draw(6), w=draw(4, 6))
    assert after("einsum_to_products", gm)[1] == 0


def test_a_weight_is_stored_once_for_all_its_readers():
    def function(x, w):
        return torch.einsum("ibh,hnd->ibnd", x, w), torch.einsum("ibh,hnd->bind", x + 1, w)

    changed, count = after("einsum_to_products", before("einsum_to_products", function, X, w=W))
    assert count == 2 and [tuple(each.shape) for each in changed.buffers()] == [(12, 6)]


KEPT = {
    "diagonal": lambda x, w: torch.einsum("iib,bk->ik", x[:, :, None].expand(-1, -1, 2).flatten(2)[:2], w),
    "summed alone": lambda x, w: torch.einsum("ib,dk->ik", x, w),
    "broadcast": lambda x, w: torch.einsum("ib,bk->ik", x[:, :1], w),
}


@pytest.mark.parametrize("name", KEPT)
def test_stays(name):
    x = draw(2, 2) if name == "diagonal" else draw(3, 4)
    gm = before("einsum_to_products", KEPT[name], x, dynamic=False, w=draw(2, 5))
    changed, count = after("einsum_to_products", gm)
    assert count == 0 and aten.einsum.default in targets(changed)
    assert_same(gm, changed, x)


def test_golden():
    gm = before("einsum_to_products", lambda x, w: torch.einsum("ibh,hnd->ibnd", x, w), X, w=W)
    check_golden("einsum_to_products", story("einsum_to_products", gm))
