"""Quantize and dequantize of activations come side by side for OpenVINO, with the same numbers."""

import pytest
import torch
from blocks import converted, inputs, reference

from fxquant.graph import edit
from fxquant.integrations.onnx.attention import SpellOutAttention
from fxquant.integrations.onnx.pairs import DequantizeAtOnce, QuantizeBehindHeads
from fxquant.integrations.substitutions import substitutions
from fxquant.passes.base import Pipeline
from fxquant.passes.qdq_nodes import DEQUANTIZE, QUANTIZE

aten = torch.ops.aten


def rewritten(gm, *passes):
    return Pipeline(passes).run(edit.clone(gm))


def readers(gm):
    """The ops that read what is quantized."""
    return {user.target for node in gm.graph.nodes if node.target is QUANTIZE for user in node.users}


@pytest.mark.parametrize("backend", ["x86", "openvino"])
def test_only_dequantize_reads_integers(backend):
    gm = converted("static", backend)
    assert readers(gm) > {DEQUANTIZE}, "the graph has moves of integers"
    found = rewritten(gm, QuantizeBehindHeads(), DequantizeAtOnce())
    assert readers(found) == {DEQUANTIZE}
    batch = inputs(3, 5, 1)
    for ours, theirs in zip(reference(gm, batch), reference(found, batch), strict=True):
        assert torch.equal(ours, theirs)


def test_heads_come_together_in_front_of_their_quantize():
    gm = rewritten(converted("static"), QuantizeBehindHeads())
    (attention,) = gm.graph.find_nodes(op="call_function", target=aten.scaled_dot_product_attention.default)
    assert [user.target for user in attention.users] == [aten.transpose.int]
    assert DequantizeAtOnce().apply(edit.clone(gm)) == 1, "the first token of each sequence, which is pooled"


def test_queries_without_keys_give_the_mean():
    gm = converted("static")
    batch = inputs(3, 5, 1)
    mean, zeros = (rewritten(gm, SpellOutAttention(unseen)) for unseen in ("mean", "zeros"))
    assert [each.name for each in substitutions(mean)] == ["unseen queries"]
    assert substitutions(zeros) == ()
    assert torch.equal(reference(mean, batch)[0], reference(zeros, batch)[0])
    batch["mask"][1] = 0
    one, other = (reference(each, batch)[0] for each in (mean, zeros))
    assert not torch.allclose(one[1], other[1])
    assert torch.equal(one[2], other[2])
    torch.testing.assert_close(other, reference(gm, batch)[0], rtol=0, atol=1e-5)
