"""Attention in every spelling of the catalogue becomes ATen's one op, and gives the same numbers."""

import math

import pytest
import torch
from canonical import after, assert_same, before, targets

aten = torch.ops.aten
SDPA = aten.scaled_dot_product_attention.default
B, H, S, D = 2, 4, 5, 8
Q = torch.randn(B, H, S, D)
QKV = torch.randn(B, S, 3 * H * D)
MASK = torch.zeros(B, 1, S, S).masked_fill(torch.ones(S, S).triu(1).bool(), torch.finfo(torch.float32).min)
LEAST = torch.finfo(torch.float32).min


def parts(x):
    """Return query, key and value [B, H, S, D] of x [B, S, 3·H·D]."""
    return (each.unflatten(-1, (H, D)).transpose(1, 2) for each in x.split(H * D, -1))


def eager(x, mask):
    q, k, v = parts(x)
    scores = torch.matmul(q, k.transpose(2, 3)) * 0.25 + mask
    return torch.matmul(scores.softmax(-1, dtype=torch.float32), v).transpose(1, 2).reshape(*x.shape[:2], -1)


def bert(x, mask):
    q, k, v = parts(x)
    return (torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(D) + mask).softmax(-1) @ v


def slopes(x):
    return torch.arange(x.shape[1]).float().expand(x.shape[0] * H, 1, -1)


def bloom(x, mask, alibi=None):
    q, k, v = parts(x)
    rows, heads = x.shape[0] * H, (x.shape[0] * H, -1, D)
    alibi = slopes(x) if alibi is None else alibi
    scores = alibi.baddbmm(q.reshape(heads), k.reshape(heads).transpose(1, 2), beta=1.0, alpha=0.3)
    scores = scores.view(x.shape[0], H, x.shape[1], -1) + mask
    probabilities = scores.softmax(-1).view(rows, x.shape[1], -1)
    return torch.bmm(probabilities, v.reshape(heads)).view(x.shape[0], H, x.shape[1], D).permute(0, 2, 1, 3)


def multihead(x, mask):
    """As nn.MultiheadAttention without weights to give back, all heads one batch."""
    q, k, v = (each.reshape(-1, x.shape[1], D) for each in parts(x))
    return torch.bmm(torch.bmm(q * D**-0.5, k.transpose(1, 2)).softmax(-1), v)


def deberta(x, mask):
    q, k, v = (each.reshape(-1, x.shape[1], D) for each in parts(x))
    scores = torch.bmm(q, (k / 3.0).transpose(-1, -2)) + torch.bmm(q, q.transpose(-1, -2)) / 2.0
    scores = scores.view(-1, H, x.shape[1], x.shape[1]).masked_fill(mask < 0, LEAST)
    return torch.bmm(scores.softmax(-1).view(-1, x.shape[1], x.shape[1]), v).view(-1, H, x.shape[1], D)


def gpt_neo(x, mask):
    q, k, v = parts(x)
    scores = torch.where(mask == 0, q @ k.transpose(-1, -2), torch.full([], LEAST))
    return (scores + mask).softmax(-1) @ v


def xglm(x, mask):
    q, k, v = (each.reshape(-1, x.shape[1], D) for each in parts(x))
    scores = torch.bmm(q, k.transpose(1, 2)).view(x.shape[0], H, x.shape[1], x.shape[1]) + mask
    scores = torch.max(scores, torch.tensor(LEAST)).view(-1, x.shape[1], x.shape[1])
    return torch.bmm(scores.softmax(-1), v)


def xlnet(x, mask):
    q, k, v = (each.permute(2, 0, 1, 3) for each in parts(x))
    positions = torch.einsum("ibnd,jbnd->bnij", q, q)
    scores = (torch.einsum("ibnd,jbnd->bnij", q, k) + positions + 0) * 0.25
    return torch.einsum("bnij,jbnd->ibnd", (scores - (mask < 0).float() * 1e30).softmax(-1), v)


SPELLINGS = {each.__name__: each for each in (eager, bert, bloom, multihead, deberta, gpt_neo, xglm, xlnet)}


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_is_one_op(name):
    gm = before("recompose_attention", SPELLINGS[name], QKV, MASK)
    changed, count = after("recompose_attention", gm)
    assert count == 1 and targets(changed).count(SDPA) == 1
    assert aten.softmax.int not in targets(changed)
    for rows, length in ((2, 5), (3, 7), (1, 1)):
        mask = torch.zeros(rows, 1, length, length).masked_fill(torch.ones(length, length).triu(1).bool(), LEAST)
        if name != "gpt_neo":  # which hides twice, and gets NaN from −inf alone
            mask[0, :, :, 0] = LEAST  # and so a query from which every key is hidden
        assert_same(gm, changed, torch.randn(rows, length, 3 * H * D), mask, units=8)


def test_operands_of_four_dimensions_are_read_where_heads_are_merged():
    changed, _ = after("recompose_attention", before("recompose_attention", bloom, QKV, MASK))
    (node,) = changed.graph.find_nodes(op="call_function", target=SDPA)
    assert all(operand.target is aten.transpose.int for operand in node.args[:3])
    assert aten.reshape.default not in [user.target for user in node.users]


def test_layers_share_a_mask_that_is_made_of_the_same():
    def two(x, mask):
        alibi = slopes(x)
        return bloom(x, mask, alibi), bloom(x * 2, mask, alibi)

    changed, _ = after("recompose_attention", before("recompose_attention", two, QKV, MASK))
    nodes = changed.graph.find_nodes(op="call_function", target=SDPA)
    assert len(nodes) == 2 and len({node.args[3] for node in nodes}) == 1


def softcap(x, mask):
    q, k, v = parts(x)
    return (torch.tanh(q @ k.transpose(2, 3) / 50.0) * 50.0 + mask).softmax(-1) @ v


def gives_probabilities(x, mask):
    q, k, v = parts(x)
    probabilities = (q @ k.transpose(2, 3) + mask).softmax(-1)
    return probabilities @ v, probabilities


def weak_mask(x, mask):
    q, k, v = parts(x)
    return (q @ k.transpose(2, 3)).masked_fill(mask < 0, -5.0).softmax(-1) @ v


def other_axis(x, mask):
    q, k, v = parts(x)
    return (q @ k.transpose(2, 3) + mask).softmax(-2) @ v


@pytest.mark.parametrize("function", [softcap, gives_probabilities, weak_mask, other_axis])
def test_what_the_op_cannot_say_stays(function):
    gm = before("recompose_attention", function, QKV, MASK)
    changed, count = after("recompose_attention", gm)
    assert count == 0 and targets(changed) == targets(gm)


def repeated(x):
    key = x[:, :2]
    wide = key[:, :, None].expand(x.shape[0], 2, 2, x.shape[2], D).reshape(x.shape[0], H, x.shape[2], D)
    return torch.nn.functional.scaled_dot_product_attention(x, wide, wide)


def test_repeated_heads_are_given_once():
    gm = before("recompose_attention", repeated, Q)
    changed, count = after("recompose_attention", gm)
    assert count == 1 and targets(changed).count(aten.expand.default) == 0
    (node,) = changed.graph.find_nodes(op="call_function", target=SDPA)
    assert node.kwargs["enable_gqa"] is True
    assert_same(gm, changed, torch.randn(3, H, 7, D), units=4)
