"""Graphs that torch.export made are captured like models, and single passes run on them as they are."""

import models
import pytest
import torch
from torch import nn

import fxquant as fxq
from fxquant import transforms

X = torch.randn(4, 16)


def exported(model, args, kwargs=None):
    """Return the graph of a torch.export with a free first axis."""
    sizes = [{0: torch.export.Dim.AUTO} for _ in args] or {name: {0: torch.export.Dim.AUTO} for name in kwargs}
    sizes = tuple(sizes) if args else sizes
    return torch.export.export(model.eval(), args, kwargs, dynamic_shapes=sizes).module()


@pytest.mark.parametrize("named", [False, True], ids=["by-position", "by-name"])
def test_an_exported_graph_is_captured(named):
    model, _ = models.mlp()
    foreign = exported(model, () if named else (X,), {"x": X} if named else None)
    graph = fxq.capture(foreign, {"x": X} if named else (X,))
    more = X.repeat(2, 1)
    result = graph(x=more) if named else graph(more)
    assert torch.equal(result, model(more))
    lowered = fxq.quantize(foreign, {"x": X} if named else (X,))
    assert [row.op for row in fxq.ledger(lowered).rows if row.quantized] == ["linear_relu", "linear"]
    assert set(fxq.convert(fxq.prepare(graph, "x86", "dynamic")).state_dict()) >= {"up.weight_int8", "down.weight_int8"}


def test_a_transformation_takes_an_exported_graph():
    model = nn.Sequential(nn.Conv1d(3, 4, 2), nn.BatchNorm1d(4))
    x = torch.randn(2, 3, 6)
    foreign = exported(model, (x,))
    changed = transforms.FuseBatchNorm()(foreign)
    assert not [node for node in changed.graph.nodes if node.target is torch.ops.aten.batch_norm.default]
    torch.testing.assert_close(changed(x), model(x), rtol=1e-5, atol=1e-5)
