"""The device of a graph: read from its tensors, one for all, and followed by what makes tensors in it."""

import models
import pytest
import torch
from graphs import canonical_graph
from torch import nn

from fxquant.errors import ConfigError, FxQuantError
from fxquant.graph import checks, edit, place
from fxquant.graph.capture import capture
from fxquant.passes.canonicalize import CANONICAL

aten = torch.ops.aten
META, CPU = torch.device("meta"), torch.device("cpu")


class Counting(nn.Module):
    """Two weights, of which one has two names, and positions that are made while running."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(x)) + torch.arange(x.shape[0], device=x.device).cumsum(0)[:, None]


@pytest.fixture
def gm():
    return canonical_graph(Counting(), torch.randn(3, 4))


def made_on(gm):
    return {value for node in gm.graph.nodes for value in edit.arguments(node) if isinstance(value, torch.device)}


def test_the_device_is_that_of_all_tensors(gm):
    assert place.device_of(gm) == CPU
    place.move([gm], META)
    assert place.device_of(gm) == META


def test_a_graph_without_tensors_has_none():
    assert place.device_of(canonical_graph(nn.ReLU(), torch.randn(3))) is None


def test_tensors_on_two_devices_are_named(gm):
    edit.set_tensor(gm, "first.bias", torch.empty(4, device="meta"))
    with pytest.raises(FxQuantError, match=r"two devices: 'first.bias' is on meta and 'first.weight' on cpu"):
        place.device_of(gm)


def test_what_is_made_while_running_is_made_there(gm):
    assert made_on(gm) == {CPU}
    assert place.make_on(gm, CPU) == 0
    assert place.make_on(gm, META) == 1
    assert made_on(gm) == {META}
    assert "meta" in gm.code


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_a_model_is_captured_where_it_is(name, monkeypatch):
    """Nothing that a pass adds is left on the CPU; a device without values stands for any other."""
    monkeypatch.setattr(checks, "_check_model", lambda model: None)
    model, inputs = models.EVERY[name]()
    graph = capture(model.to(META), {key: value.to(META) for key, value in inputs.items()})
    gm = CANONICAL.run(edit.clone(graph))
    assert place.device_of(gm) == META
    assert made_on(gm) <= {META}


def test_shared_tensors_are_moved_once():
    graphs = [canonical_graph(Counting(), torch.randn(3, 4)) for _ in range(2)]
    shared = edit.constants(graphs[0])["first.weight"]
    edit.set_tensor(graphs[1], "first.weight", shared)
    place.move(graphs, META)
    one, other = (edit.constants(gm)["first.weight"] for gm in graphs)
    assert one.device == META
    assert one is other
    assert shared.device == CPU, "who else holds it keeps it"


def test_a_graph_that_moves_leaves_the_one_it_was_cloned_from(gm):
    copy = edit.clone(gm)
    place.move([copy], META)
    assert {tensor.device for tensor in edit.constants(gm).values()} == {CPU}


@pytest.mark.parametrize("name", ["cdua", "cpu:x"])
def test_unknown_devices(name):
    with pytest.raises(ConfigError, match=f"device = '{name}' cannot be used here"):
        place.read_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_device_that_is_not_there():
    with pytest.raises(ConfigError, match="device = 'cuda' cannot be used here"):
        place.read_device("cuda")
