"""The kernel sets agree: a model lowered for x86 equals the one lowered for the reference to the bit, end to end."""

import models
import pytest
import torch

import fxquant as fxq
from fxquant.kernels.x86 import native


@pytest.mark.parametrize("recipe", ["dynamic", "static"])
@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "t5", "mlp"])
def test_x86_equals_the_reference_to_the_bit(name, recipe):
    if not native.available():
        pytest.skip("the C++ kernels are not available; torch's round in another order")
    model, inputs = models.EVERY[name]()
    prepared = fxq.prepare(fxq.capture(model, inputs), "x86", recipe)
    if recipe == "static":
        fxq.calibrate(prepared, [inputs], progress=False)
    qdq = fxq.convert(prepared)
    x86, reference = fxq.lower(qdq), fxq.lower(qdq, "reference")
    with torch.no_grad():
        ours, theirs = (list(torch.utils._pytree.tree_leaves(gm(**inputs))) for gm in (x86, reference))
    assert ours
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
