"""Decomposed GELU and SiLU are recognised in every form, and in no other."""

import math

import pytest
import torch
from canonical import after, assert_same, before, story, targets
from golden import check_golden
from transformers.activations import ACT2FN

aten = torch.ops.aten
X = torch.cat([torch.linspace(-12, 12, 481), torch.tensor([0.0, -0.0, 1e-20, -1e-20, 40.0, -40.0])]).reshape(1, -1)
ROOT = math.sqrt(2 / math.pi)


def tanh_gelu(x, a=0.044715, power=3.0, root=ROOT, one=1.0, half=0.5):
    """Return GELU by tanh with each of its constants."""
    return half * x * (one + torch.tanh(root * (x + a * torch.pow(x, power))))


def erf_gelu(x, root=1.4142135623730951, half=0.5, one=1.0):
    """Return GELU by erf with each of its constants."""
    return x * half * (one + torch.erf(x / root))


FORMS = [
    ("gelu_new", ACT2FN["gelu_new"], "tanh"),
    ("gelu_fast", ACT2FN["gelu_fast"], "tanh"),
    ("gelu_python", ACT2FN["gelu_python"], "none"),
    ("bloom", lambda x: x * 0.5 * (1.0 + torch.tanh(0.79788456 * x * (1 + 0.044715 * x * x))), "tanh"),
    ("curve-halved", lambda x: x * (0.5 * (1.0 + torch.tanh(ROOT * (x + 0.044715 * x**3)))), "tanh"),
    ("integer-power", lambda x: tanh_gelu(x, power=3), "tanh"),
    ("erf-of-a-product", lambda x: 0.5 * x * (1 + torch.erf(x * 0.7071067811865476)), "none"),
    ("erf-curve-halved", lambda x: x * (0.5 * (1.0 + torch.erf(x / 1.4142135623730951))), "none"),
    ("silu", lambda x: x * torch.sigmoid(x), None),
    ("silu-reversed", lambda x: torch.sigmoid(x) * x, None),
]
NEAR_MISSES = [
    ("cubic-constant", lambda x: tanh_gelu(x, a=0.0447)),
    ("square", lambda x: tanh_gelu(x, power=2.0)),
    ("root", lambda x: tanh_gelu(x, root=0.8)),
    ("one", lambda x: tanh_gelu(x, one=1.001)),
    ("half", lambda x: tanh_gelu(x, half=0.51)),
    ("erf-root", lambda x: erf_gelu(x, root=1.414)),
    ("erf-one", lambda x: erf_gelu(x, one=2.0)),
    ("quick-gelu", ACT2FN["quick_gelu"]),
    ("sigmoid-of-another", lambda x: x * torch.sigmoid(-x)),
    ("two-inputs", lambda x: torch.neg(x) * 0.5 * (1.0 + torch.tanh(ROOT * (x + 0.044715 * x**3)))),
    ("tanh-read-elsewhere", lambda x: 0.5 * x * (1.0 + (t := torch.tanh(ROOT * (x + 0.044715 * x**3)))) + t),
    ("sigmoid-read-elsewhere", lambda x: x * (s := torch.sigmoid(x)) + s),
    ("integers", lambda x: x.long() * torch.sigmoid(x.long())),
    ("promoted", lambda x: x.half() * torch.sigmoid(x.half()).float()),
    ("half-precision", lambda x: x.half() * torch.sigmoid(x.half())),
]


@pytest.mark.parametrize(("function", "approximate"), [each[1:] for each in FORMS], ids=[each[0] for each in FORMS])
def test_is_recognised(function, approximate):
    gm = before("recompose_activations", function, X, dynamic=False)
    changed, count = after("recompose_activations", gm)
    (node,) = [node for node in changed.graph.nodes if node.op == "call_function"]
    assert count == 1
    assert node.target is (aten.silu.default if approximate is None else aten.gelu.default)
    assert node.kwargs == ({} if approximate is None else {"approximate": approximate})
    with torch.no_grad():
        (expected,), (found,) = gm(X), changed(X)
    bound = 4 * torch.finfo(torch.float32).eps * X.abs().clamp_min(1.0)
    assert bool(((expected - found).abs() <= bound).all())


@pytest.mark.parametrize("function", [each[1] for each in NEAR_MISSES], ids=[each[0] for each in NEAR_MISSES])
def test_stays(function):
    gm = before("recompose_activations", function, X, dynamic=False)
    changed, count = after("recompose_activations", gm)
    assert count == 0 and targets(changed) == targets(gm)
    assert_same(gm, changed, X)


@pytest.mark.parametrize("name", ["relu", "gelu", "gelu_pytorch_tanh", "silu"])
def test_whole_activations_stay_as_they_are(name):
    gm = before("recompose_activations", ACT2FN[name], X, dynamic=False)
    changed, count = after("recompose_activations", gm)
    assert count == 0 and len(targets(changed)) == 1


def test_golden():
    gm = before("recompose_activations", ACT2FN["gelu_new"], X)
    check_golden("recompose_activations", story("recompose_activations", gm))
