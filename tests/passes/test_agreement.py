"""The kernel sets agree: x86 equals the reference to the bit, kernel by kernel; fused kernels differ by norms alone."""

from functools import cache

import models
import pytest
import torch
from captured import captured, converted
from torch import fx
from torch.nn import functional

import fxquant as fxq
from fxquant.backends import read_backend
from fxquant.kernels.cpu import native
from fxquant.kernels.cpu.row_program import row_program

ROW_PROGRAM = torch.ops.fxquant.row_program.default
MODELS = ["bert", "roberta", "distilbert", "t5", "mlp"]
# Their activations go through exponentials, which differ between the kernel sets in the last bits.
EXPONENTIAL = ["gpt2", "llama"]


@pytest.fixture(autouse=True)
def own_kernels():
    if not native.available():
        pytest.skip("the C++ kernels are not available; torch's round in another order")


def listing(*passes):
    """The x86 backend with these listed passes."""
    return read_backend({**fxq.load_backend("x86").to_dict(), "lower": {"passes": list(passes)}}, "test")


@cache
def lowered(name, recipe, *passes):
    """A model lowered for x86 with these listed passes."""
    return fxq.lower(converted(name, recipe), listing(*passes))


@cache
def reference(name, recipe):
    """What the reference kernels give."""
    return outputs(fxq.lower(converted(name, recipe), "reference"), captured(name)[1])


def outputs(gm, inputs):
    with torch.no_grad():
        found = models.tensors(gm(**inputs))
    assert found
    return found


def equal(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("recipe", ["dynamic", "static"])
@pytest.mark.parametrize("name", MODELS)
def test_x86_equals_the_reference_to_the_bit(name, recipe):
    x86 = lowered(name, recipe, "merge_linears")
    assert equal(outputs(x86, captured(name)[1]), reference(name, recipe))


@pytest.mark.parametrize("recipe", ["dynamic", "static"])
@pytest.mark.parametrize("name", [*MODELS, *EXPONENTIAL])
def test_all_listed_passes_agree_with_the_reference(name, recipe):
    ours = outputs(fxq.lower(converted(name, recipe), "x86"), captured(name)[1])
    for a, b in zip(ours, reference(name, recipe), strict=True):
        assert functional.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0) >= 0.995


class InPython(fx.Interpreter):
    """Runs a graph with the Python implementation of its row programs, which normalizes as torch does."""

    def __init__(self, gm):
        super().__init__(gm)
        self.programs = 0

    def call_function(self, target, args, kwargs):
        if target is not ROW_PROGRAM:
            return super().call_function(target, args, kwargs)
        self.programs += 1
        return row_program(*args)

    def __call__(self, **inputs):
        leaves = self.module.graph._codegen.signature.flatten((), inputs)
        return self.run(*leaves, enable_io_processing=False)


@pytest.mark.parametrize("recipe", ["dynamic", "static"])
@pytest.mark.parametrize("name", MODELS)
def test_fused_rows_differ_by_their_norms_alone(name, recipe):
    """With torch's norms, and all else of the arithmetic in Python, the fused graph is the one before to the bit."""
    inputs = captured(name)[1]
    fused = InPython(lowered(name, recipe, "merge_linears", "fuse_rows"))
    assert equal(outputs(fused, inputs), outputs(lowered(name, recipe, "merge_linears"), inputs))
    assert fused.programs


def test_a_model_without_norms_is_equal_through_fused_rows():
    inputs = captured("mlp")[1]
    fused, apart = (lowered("mlp", "static", *names) for names in (["fuse_rows"], []))
    assert ROW_PROGRAM in {node.target for node in fused.graph.nodes}
    assert equal(outputs(fused, inputs), outputs(apart, inputs))
