"""Activations in int8 become uint8 for runtimes that multiply those, with the same numbers."""

import torch
from blocks import converted, inputs, reference

from fxquant.graph import edit
from fxquant.integrations.onnx.biases import FloatBiases
from fxquant.integrations.onnx.zero_points import TypedZeroPoints, UnsignedActivations
from fxquant.passes.base import Pipeline
from fxquant.passes.qdq_nodes import DEQUANTIZE, QUANTIZE

LINEAR = torch.ops.aten.linear.default
NEG = torch.ops.aten.neg.default


def quantizes(gm):
    return gm.graph.find_nodes(op="call_function", target=QUANTIZE)


def test_numbers_stay_when_signed_becomes_unsigned():
    gm, batch = converted("static", "reference"), inputs(3, 5, 1)
    assert {node.args[6] for node in quantizes(gm)} == {torch.int8}
    found = Pipeline((TypedZeroPoints(), UnsignedActivations())).run(edit.clone(gm))
    assert {node.args[4:] for node in quantizes(found)} == {(0, 255, torch.uint8)}
    moved = [user for node in quantizes(found) for user in node.users if user.target is not DEQUANTIZE]
    assert moved, "the graph has moves of integers"
    assert {edit.info(node).dtype for node in (*quantizes(found), *moved)} == {torch.uint8}
    for ours, theirs in zip(reference(gm, batch), reference(found, batch), strict=True):
        assert torch.equal(ours, theirs)


def test_integers_that_something_computes_with_stay_signed():
    gm = edit.clone(converted("static", "reference"))
    first, *others = quantizes(gm)
    reader = next(iter(first.users))
    with gm.graph.inserting_after(first):
        edit.set_argument(reader, 0, edit.call(gm.graph, NEG, (first,), like=first))
    Pipeline((TypedZeroPoints(), UnsignedActivations())).run(gm)
    assert first.args[6] is torch.int8
    assert {node.args[6] for node in others} == {torch.uint8}


def test_biases_in_integers_become_float():
    gm, batch = converted("static", "reference"), inputs(3, 5, 1)
    found = Pipeline((FloatBiases(),)).run(edit.clone(gm))
    linears = gm.graph.find_nodes(op="call_function", target=LINEAR)
    assert {node.args[2].target for node in linears} == {DEQUANTIZE}
    assert all(edit.is_constant(node.args[2]) for node in found.graph.find_nodes(op="call_function", target=LINEAR))
    for ours, theirs in zip(reference(gm, batch), reference(found, batch), strict=True):
        assert torch.equal(ours, theirs)
