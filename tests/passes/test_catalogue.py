"""The catalogue of spellings: what models write in different ways comes to one form, and gives the same numbers."""

import math

import pytest
import torch
from canonical import Holding, assert_same, targets
from torch.nn import functional
from transformers.activations import ACT2FN

from fxquant.graph.capture import capture
from fxquant.passes.canonicalize import canonicalize

aten = torch.ops.aten
pytestmark = pytest.mark.filterwarnings("ignore:dimension")
X = torch.randn(2, 5, 6)
IDLE = {aten.sym_size.int, aten.reshape.default, aten.transpose.int, aten.permute.default}


def mean(x):
    return x.mean(-1, keepdim=True)


def moved(x, w, b):
    """As SqueezeBERT and ConvNeXt normalise channels that come first."""
    return functional.layer_norm(x.permute(0, 2, 1).permute(0, 2, 1), [6], w, b)


W, B, ONES = torch.randn(4, 6), torch.randn(4), torch.randn(6)
LINEARS = {
    "linear": lambda x, w, b: functional.linear(x, w, bias=b),
    "GPT-2": lambda x, w, b: torch.addmm(b, x.view(-1, 6), w.t()).view(*x.shape[:2], 4),
    "Falcon": lambda x, w, b: x @ w.T + b,
    "SqueezeBERT": lambda x, w, b: functional.conv1d(x.transpose(1, 2), w[:, :, None], b).transpose(1, 2),
    "XLNet": lambda x, w, b: torch.einsum("bsk,nk->bsn", x, w) + b,
    "inner": lambda x, w, b: b + torch.inner(x, w),
    "tensordot": lambda x, w, b: torch.tensordot(x, w, ([2], [1])) + b,
    "by second names": lambda x, w, b: torch.linalg.matmul(x, w.swapaxes(0, 1)).add(b),
}
NORMS = {
    "layer_norm": lambda x, w, b: functional.layer_norm(x, [6], w, b, 1e-5),
    "DeBERTa": lambda x, w, b: w * ((x - mean(x)) / torch.sqrt(mean((x - mean(x)).pow(2)) + 1e-5)) + b,
    "moved": moved,
}
ROOTS = {
    "rms_norm": lambda x, w: functional.rms_norm(x, [6], w, 1e-5),
    "Llama": lambda x, w: w * (x.float() * torch.rsqrt(mean(x.float().pow(2)) + 1e-5)).to(x.dtype),
    "Gemma": lambda x, w: ((x * torch.rsqrt(mean(x * x) + 1e-5)) * (1.0 + (w - 1.0))).type_as(x),
    "square": lambda x, w: torch.multiply(w, x * torch.rsqrt(mean(torch.square(x)) + 1e-5)),
}
GELUS = {
    "gelu": lambda x: functional.gelu(x, approximate="tanh"),
    "GPT-2": ACT2FN["gelu_new"],
    "BLOOM": lambda x: x * 0.5 * (1.0 + torch.tanh(0.79788456 * x * (1 + 0.044715 * x * x))),
}
QUICK = {
    "CLIP": ACT2FN["quick_gelu"],
    "reversed": lambda x: torch.special.expit(x * 1.702) * x,
}
# MobileBERT's NoNorm has no op of its own: one product and one sum.
SCALES = {"MobileBERT": lambda x, w, b: x * w + b, "reversed": lambda x, w, b: b + torch.multiply(w, x)}
MASKS = {
    "added": lambda x, mask: (x + mask).softmax(-1),
    "second name": lambda x, mask: torch.special.softmax(torch.add(x, mask), -1),
}
FORMS = {
    # name: spellings, constants, and the calls that are left
    "linear": (LINEARS, {"w": W, "b": B}, [aten.linear.default]),
    "LayerNorm": (NORMS, {"w": ONES, "b": ONES + 1}, [aten.layer_norm.default]),
    "RMSNorm": (ROOTS, {"w": ONES}, [aten.rms_norm.default]),
    "GELU": (GELUS, {}, [aten.gelu.default]),
    "QuickGELU": (QUICK, {}, [aten.mul.Tensor, aten.sigmoid.default, aten.mul.Tensor]),
    "NoNorm": (SCALES, {"w": ONES, "b": ONES + 1}, [aten.mul.Tensor, aten.add.Tensor]),
    "mask": (MASKS, {"mask": ONES}, [aten.add.Tensor, aten.softmax.int]),
}
CASES = [(form, spelling) for form, (spellings, _, _) in FORMS.items() for spelling in spellings]


@pytest.mark.parametrize(("form", "spelling"), CASES, ids=[": ".join(case) for case in CASES])
def test_comes_to_one_form(form, spelling):
    spellings, constants, left = FORMS[form]
    gm = capture(Holding(spellings[spelling], **constants).eval(), X)
    changed = canonicalize(gm)
    assert [target for target in targets(changed) if target not in IDLE] == left
    assert_same(gm, changed, X, units=16)
    with torch.no_grad():
        first = next(iter(spellings.values()))(X, *constants.values())
        torch.testing.assert_close(changed(X), first, rtol=1e-5, atol=1e-5 * math.sqrt(X.numel()))
