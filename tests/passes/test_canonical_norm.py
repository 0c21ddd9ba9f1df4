"""Decomposed norms are recognised in every form, and in no other."""

import pytest
import torch
from canonical import after, assert_same, before, story, targets
from golden import check_golden

from fxquant.graph import edit

aten = torch.ops.aten
H = 32
X = 3 * torch.randn(2, 5, H) + 1
W, B = 1 + 0.1 * torch.randn(H), torch.randn(H)


def mean(x):
    return x.mean(-1, keepdim=True)


def llama(x, w):
    """Return Llama's RMSNorm, casts included."""
    hidden = x.to(torch.float32)
    hidden = hidden * torch.rsqrt(mean(hidden.pow(2)) + 1e-6)
    return w * hidden.to(x.dtype)


def gemma(x, w):
    """Return Gemma's RMSNorm."""
    normed = x.float() * torch.rsqrt(mean(x.float().pow(2)) + 1e-6)
    return (normed * (1.0 + w.float())).type_as(x)


RMS = [
    ("llama", llama, 0),
    ("t5", lambda x, w: w * (x * torch.rsqrt(mean(x.to(torch.float32).pow(2)) + 1e-6)), 0),
    ("gemma", gemma, 0),
    ("weight-last", lambda x, w: (torch.rsqrt(1e-5 + mean(x**2)) * x) * w, 0),
    ("square-by-product", lambda x, w: x * torch.rsqrt(mean(x * x) + 1e-6) * w, 4),
    ("over-the-root", lambda x, w: x / torch.sqrt(mean(x.pow(2)) + 1e-6) * w, 4),
]
LAYER = [
    ("deberta", lambda x, w, b: w * ((x - mean(x)) / torch.sqrt(mean((x - mean(x)) ** 2) + 1e-7)) + b),
    ("rsqrt", lambda x, w, b: (x - mean(x)) * torch.rsqrt(mean((x - mean(x)).pow(2)) + 1e-5) * w + b),
    ("product", lambda x, w, b: b + (d := x - mean(x)) / torch.sqrt(mean(d * d) + 1e-5) * w),
    ("var", lambda x, w, b: (x - mean(x)) / torch.sqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-5) * w + b),
    ("correction", lambda x, w, b: (x - mean(x)) * torch.rsqrt(x.var(-1, keepdim=True, correction=0) + 1e-5) * w + b),
    ("var-mean", lambda x, w, b: var_mean(x) * w + b),
]


def var_mean(x):
    variance, centre = torch.var_mean(x, -1, keepdim=True, correction=0)
    return (x - centre) / torch.sqrt(variance + 1e-5)


def whole(gm, target):
    """Return the one call of `target`."""
    (node,) = [node for node in gm.graph.nodes if node.target is target]
    return node


@pytest.mark.parametrize(("function", "units"), [each[1:] for each in RMS], ids=[each[0] for each in RMS])
def test_rms_norm(function, units):
    gm = before("recompose_norms", function, X, w=W)
    changed, count = after("recompose_norms", gm)
    assert count == 1 and targets(changed) == [aten.rms_norm.default]
    node = whole(changed, aten.rms_norm.default)
    assert node.args[1] == [H] and node.args[3] in (1e-6, 1e-5)
    assert edit.is_constant(node.args[2])
    assert edit.info(node) == edit.info(list(gm.graph.nodes)[-1].args[0][0])
    assert_same(gm, changed, X, units=units)
    assert_same(gm, changed, 1e-4 * torch.randn(1, 1, H), units=units)


@pytest.mark.parametrize("function", [each[1] for each in LAYER], ids=[each[0] for each in LAYER])
def test_layer_norm(function):
    gm = before("recompose_norms", function, X, w=W, b=B)
    changed, count = after("recompose_norms", gm)
    assert count == 1 and targets(changed) == [aten.layer_norm.default]
    node = whole(changed, aten.layer_norm.default)
    assert node.args[1] == [H] and node.args[4] in (1e-7, 1e-5) and node.args[5] is False
    assert_same(gm, changed, X, units=4)


NEAR_MISSES = [
    ("eps-outside-the-root", lambda x, w, b: x / (torch.sqrt(mean(x.pow(2))) + 1e-6) * w),
    ("eps-of-the-inverse", lambda x, w, b: x * (torch.rsqrt(mean(x.pow(2))) + 1e-6) * w),
    ("fourth-power", lambda x, w, b: x * torch.rsqrt(mean(x.pow(4)) + 1e-6) * w),
    ("sum", lambda x, w, b: x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + 1e-6) * w),
    ("another-axis", lambda x, w, b: x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-6) * w),
    ("two-axes", lambda x, w, b: x * torch.rsqrt(x.pow(2).mean((-2, -1), keepdim=True) + 1e-6) * w),
    ("another-numerator", lambda x, w, b: torch.relu(x) * torch.rsqrt(mean(x.pow(2)) + 1e-6) * w),
    ("computed-weight", lambda x, w, b: x * torch.rsqrt(mean(x.pow(2)) + 1e-6) * (w * x[0, 0, 0])),
    ("scalar-weight", lambda x, w, b: x * torch.rsqrt(mean(x.pow(2)) + 1e-6) * 2.0),
    ("one-weight-for-all", lambda x, w, b: x * torch.rsqrt(mean(x.pow(2)) + 1e-6) * w[0]),
    ("half-inside", lambda x, w, b: w * (x.half() * torch.rsqrt(mean(x.half().pow(2)) + 1e-6))),
    ("root-read-elsewhere", lambda x, w, b: x * (r := torch.rsqrt(mean(x.pow(2)) + 1e-6)) * w + r),
    ("eps-computed", lambda x, w, b: x * torch.rsqrt(mean(x.pow(2)) + x[0, 0, 0].abs()) * w),
    ("unbiased", lambda x, w, b: (x - mean(x)) / torch.sqrt(x.var(-1, keepdim=True) + 1e-5) * w + b),
    ("deviation", lambda x, w, b: (x - mean(x)) / (x.std(-1, keepdim=True) + 1e-6) * w + b),
    ("reversed-difference", lambda x, w, b: (mean(x) - x) / torch.sqrt(x.var(-1, False, keepdim=True) + 1e-5) * w + b),
    ("no-bias", lambda x, w, b: (x - mean(x)) / torch.sqrt(x.var(-1, False, keepdim=True) + 1e-5) * w),
    (
        "bias-per-token",
        lambda x, w, b: (x - mean(x)) * torch.rsqrt(x.var(-1, False, keepdim=True) + 1e-5) * w + mean(x),
    ),
    (
        "variance-of-another",
        lambda x, w, b: (x - mean(x)) / torch.sqrt((2 * x).var(-1, False, keepdim=True) + 1e-5) * w + b,
    ),
]


@pytest.mark.parametrize("function", [each[1] for each in NEAR_MISSES], ids=[each[0] for each in NEAR_MISSES])
def test_stays(function):
    gm = before("recompose_norms", function, X, dynamic=False, w=W, b=B)
    changed, count = after("recompose_norms", gm)
    assert count == 0 and targets(changed) == targets(gm)


def test_a_weight_of_another_length_is_no_norm():
    gm = before(
        "recompose_norms", lambda x, w: w * (x * torch.rsqrt(mean(x * x) + 1e-6)), X[..., :1], dynamic=False, w=W
    )
    assert after("recompose_norms", gm)[1] == 0


def test_a_layer_norm_whose_difference_is_read_elsewhere_keeps_it():
    def function(x, w, b):
        difference = x - mean(x)
        return difference / torch.sqrt(mean(difference.pow(2)) + 1e-5) * w + b, difference

    gm = before("recompose_norms", function, X, w=W, b=B)
    changed, _ = after("recompose_norms", gm)
    assert aten.layer_norm.default not in targets(changed)
    assert_same(gm, changed, X, units=4)


def test_the_path_is_that_of_the_norm():
    gm = before("recompose_norms", llama, X, w=W)
    for node in gm.graph.nodes:
        edit.mark(node, path="layers.0.input_layernorm")
    changed, _ = after("recompose_norms", gm)
    assert edit.path_of(whole(changed, aten.rms_norm.default)) == "layers.0.input_layernorm"


def test_golden():
    check_golden("recompose_norms", story("recompose_norms", before("recompose_norms", LAYER[0][1], X, w=W, b=B)))
