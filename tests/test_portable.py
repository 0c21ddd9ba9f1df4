"""A lowered graph keeps its Q/DQ graph and holds each weight once."""

import copy

import pytest
import torch
from captured import captured, converted
from torch import nn

import fxquant as fxq
from fxquant.errors import FxQuantError
from fxquant.graph import edit
from fxquant.kernels.cpu import native
from fxquant.portable import kept, portable, release

pytestmark = pytest.mark.skipif(not native.available(), reason="weights are packed for the C++ kernels")


def tensors(gm):
    return {str(node.target): edit.get_tensor(gm, node) for node in gm.graph.nodes if node.op == "get_attr"}


@pytest.mark.parametrize("recipe", ["dynamic", "static", "weight-only", "weight-only-int4"])
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_packed_weights_come_back_to_the_bit(name, recipe):
    qdq = converted(name, recipe)
    lowered = fxq.lower(qdq)
    gone = [target for target, tensor in tensors(kept(lowered)).items() if tensor.is_meta]
    assert len(gone) >= 4
    for graph in (lowered, edit.clone(lowered), copy.deepcopy(lowered)):
        found = tensors(portable(graph))
        assert found.keys() == tensors(qdq).keys()
        for target, tensor in tensors(qdq).items():
            assert found[target].dtype == tensor.dtype
            assert torch.equal(found[target], tensor), target
    inputs = captured(name)[1]
    assert torch.equal(portable(lowered)(**inputs)[0], qdq(**inputs)[0])


def test_the_graph_that_was_lowered_keeps_its_weights():
    qdq = converted("bert")
    fxq.lower(qdq)
    assert not any(tensor.is_meta for tensor in tensors(qdq).values())


def test_a_weight_that_is_read_plain_too_is_not_dropped():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(96, 64), nn.Linear(64, 96, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, ids):
            return self.head(self.embedding(ids))

    lowered = fxq.quantize(Tied().eval(), {"ids": torch.arange(6).reshape(2, 3)})
    assert not any(tensor.is_meta for tensor in tensors(kept(lowered)).values())


def two_graphs():
    """Return two Q/DQ graphs of one weight."""
    layer = nn.Linear(64, 96).eval()
    program = fxq.Program(
        {name: fxq.capture(layer, (torch.ones(size, 64),)) for name, size in (("a", 2), ("b", 3))}, "modules"
    )
    return fxq.convert(fxq.prepare(program, "x86", "dynamic"))


def test_graphs_go_on_sharing_a_weight():
    lowered = fxq.lower(two_graphs())
    a, b = (tensors(portable(gm))["weight_int8"] for gm in lowered.graphs.values())
    assert a.data_ptr() == b.data_ptr()


def test_a_graph_that_needs_the_plain_weight_keeps_it_for_all():
    a, b = two_graphs().graphs.values()
    graphs = [fxq.lower(a), fxq.lower(b, "reference")]
    shared = tensors(kept(graphs[1]))["weight_int8"]
    edit.set_tensor(kept(graphs[0]), "weight_int8", shared)
    release(graphs)
    assert tensors(kept(graphs[0]))["weight_int8"] is shared


def test_a_lost_weight_is_told():
    lowered = edit.clone(fxq.lower(two_graphs()).graph("a"))
    edit.mark(lowered, packed=None)
    with pytest.raises(FxQuantError, match="the graph has lost the packed weight of weight_int8: it cannot be saved"):
        portable(lowered)
