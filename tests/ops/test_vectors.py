"""Every op brings an example of itself: its module computes the pattern, and its graph matches it."""

import pytest
import torch

import fxquant as fxq
from fxquant.graph.pattern import Match
from fxquant.ops import OPS
from fxquant.ops.vectors import Sizes, Vector, alone, normal
from fxquant.passes.canonicalize import canonicalize

SIZES = {"usual": Sizes(), "odd": Sizes(rows=3, inner=5, columns=7), "ones": Sizes(rows=2, inner=1, columns=1)}
NAMES = sorted(name for name in OPS if OPS[name].example is not None)


def test_the_packaged_ops_have_examples():
    assert {"linear", "linear_gelu", "matmul", "attention", "conv2d", "embedding", "grouped_linear"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_an_example_matches_its_pattern(name):
    op = OPS[name]
    for label, sizes in SIZES.items():
        vector = op.example(sizes)
        model = alone(op.pattern, vector)
        with torch.no_grad():
            graph = canonicalize(fxq.capture(model, dict(vector.inputs), dynamic=False))
            expected = model(**vector.inputs)
        assert any(isinstance(op.match(node), Match) for node in graph.graph.nodes if node.op == "call_function"), label
        assert torch.equal(graph(**vector.inputs), expected)


def test_a_module_of_a_pattern_computes_it():
    op = OPS["linear_add"]
    x, residual, weight = normal(2, 3), normal(2, 4), normal(4, 3)
    model = alone(op.pattern, Vector({"x": x, "residual": residual}, {"weight": weight}))
    assert torch.equal(model(x=x, residual=residual), torch.nn.functional.linear(x, weight) + residual)


def test_values_depend_on_the_shape_alone():
    assert torch.equal(normal(3, 4), normal(3, 4))
    assert not torch.equal(normal(3, 4).flatten(), normal(4, 3).flatten())
