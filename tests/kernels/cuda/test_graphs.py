"""What recorded calls keep: their keys, buffers, results and bounds, with a recorder that runs on the CPU."""

import copy
import warnings

import pytest
import torch
from recordings import Recordings
from torch import nn

import fxquant as fxq
from fxquant.errors import ConfigError, FxQuantError, FxQuantWarning, InputError
from fxquant.kernels.cuda.graphs import CudaGraphs


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x, mask=None, factor=1.0):
        y = self.linear(x) * factor
        return {"y": y if mask is None else y * mask, "factor": factor}


@pytest.fixture
def recordings():
    return Recordings()


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Model()


def wrapped(model, recordings, max_graphs=4, outputs="copied"):
    return CudaGraphs(model, max_graphs, outputs, recordings)


def test_results_are_those_of_the_module(model, recordings):
    graphs = wrapped(model, recordings)
    for rows in (1, 2, 1, 2, 1):
        x, mask = torch.randn(rows, 3), torch.randn(rows, 1)
        found, expected = graphs(x, mask=mask, factor=2.0), model(x, mask, 2.0)
        assert torch.equal(found["y"], expected["y"])
        assert found["factor"] == 2.0
    assert (recordings.recorded, recordings.replayed) == (2, 5)


@pytest.mark.parametrize(
    ("first", "second", "recorded"),
    [
        (torch.randn(2, 3), torch.randn(3, 2).t(), 1),
        (torch.randn(2, 3), torch.randn(1, 3).expand(2, 3), 1),
        (torch.randn(2, 3), torch.randn(1, 2, 3), 2),
        (torch.randn(2, 3), torch.randn(2, 3).double(), 2),
    ],
    ids=["strides", "overlap", "rank", "dtype"],
)
def test_a_graph_belongs_to_shapes_and_dtypes(first, second, recorded, recordings):
    graphs = wrapped(nn.ReLU(), recordings)
    for x in (first, second):
        assert torch.equal(graphs(x), x.relu())
    assert recordings.recorded == recorded


def test_a_graph_belongs_to_values_that_are_no_tensors(model, recordings):
    graphs, x = wrapped(model, recordings), torch.randn(2, 3)
    for factor in (1.0, 2.0, True, 1):
        assert torch.equal(graphs(x, factor=factor)["y"], model(x, factor=factor)["y"])
    assert recordings.recorded == 4, "1, 1.0 and True are equal, but no model need treat them so"
    graphs(mask=torch.ones(2, 1), x=x)
    graphs(x=x, mask=torch.ones(2, 1))
    assert recordings.recorded == 5, "the order of keywords is no matter"


def test_one_tensor_given_twice_and_others_the_next_time(recordings):
    class Difference(nn.Module):
        def forward(self, a, b):
            return a - b

    graphs, a, b = wrapped(Difference(), recordings), torch.randn(3), torch.randn(3)
    assert torch.equal(graphs(a, a), torch.zeros(3))
    assert torch.equal(graphs(a, b), a - b)
    assert recordings.recorded == 1


def test_results_are_the_callers_own_unless_shared(model, recordings):
    x, other = torch.randn(2, 3), torch.randn(2, 3)
    graphs = wrapped(model, recordings)
    kept = graphs(x)["y"]
    graphs(other)
    assert torch.equal(kept, model(x)["y"])
    shared = wrapped(model, recordings, outputs="shared")
    kept = shared(x)["y"]
    assert shared(other)["y"] is kept
    assert torch.equal(kept, model(other)["y"])


def test_inputs_that_change_later_do_not_matter(recordings):
    graphs, x = wrapped(nn.Identity(), recordings), torch.zeros(3)
    found = graphs(x)
    x.add_(1)
    assert torch.equal(found, torch.zeros(3)), "an input that is handed on is copied, too"
    assert not graphs(x).requires_grad


def test_the_graph_that_was_not_used_for_longest_makes_room(model, recordings):
    graphs = wrapped(model, recordings, max_graphs=2)
    for rows in (1, 2, 1, 3):
        graphs(torch.randn(rows, 3))
    assert recordings.recorded == 3
    graphs(torch.randn(1, 3))
    assert recordings.recorded == 3, "1 was used after 2"
    graphs(torch.randn(2, 3))
    assert recordings.recorded == 4
    assert len(graphs._recorded) == 2


def test_weights_changed_in_place_are_seen_and_moved_ones_recorded_anew(model, recordings):
    graphs, x = wrapped(model, recordings), torch.randn(2, 3)
    before = graphs(x)["y"]
    with torch.no_grad():
        model.linear.weight.mul_(2)
    assert not torch.equal(graphs(x)["y"], before)
    assert recordings.recorded == 1
    model.linear.weight.data = model.linear.weight.data.clone()
    model.linear.bias = nn.Parameter(torch.zeros(2))
    assert torch.equal(graphs(x)["y"], model(x)["y"])
    assert recordings.recorded == 2


def test_what_cannot_be_recorded_runs_as_it_did_and_says_why(model):
    def fails(run, device):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    graphs, x = wrapped(model, fails), torch.randn(2, 3)
    text = r"inputs \[2, 3\] run without a CUDA graph: RuntimeError: operation not permitted when stream is capturing$"
    with pytest.warns(FxQuantWarning, match=text):
        assert torch.equal(graphs(x)["y"], model(x)["y"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(graphs(x)["y"], model(x)["y"]), "it says so once a shape"
    with pytest.warns(FxQuantWarning, match=r"inputs \[1, 3\]"):
        graphs(torch.randn(1, 3))


def test_things_that_hide_tensors_are_not_recorded(recordings):
    class Box:
        def __init__(self, x):
            self.x = x

    class Boxes(nn.Module):
        def forward(self, x):
            return Box(x.x if isinstance(x, Box) else x)

    graphs, x = wrapped(Boxes(), recordings), torch.randn(2)
    with pytest.warns(FxQuantWarning, match="the result holds a Box, whose tensors cannot be found"):
        assert graphs(x).x is x
    assert graphs(Box(x)).x is x, "without a tensor there is nothing to record"

    class Both(nn.Module):
        def forward(self, x, box):
            return x + box.x

    with pytest.warns(FxQuantWarning, match="an input is a Box"):
        assert torch.equal(wrapped(Both(), recordings)(x, Box(x)), 2 * x)


def test_wrong_calls_are_errors(model, recordings):
    x = torch.randn(2, 3)
    lowered = fxq.capture(model.eval(), (x,))
    with pytest.raises(InputError, match="unexpected argument 'masks'"):
        wrapped(lowered, recordings)(x, masks=x)
    with pytest.raises(InputError, match="that of its module; found meta; the module is on cpu"):
        wrapped(model, recordings)(x.to("meta"))
    with pytest.raises(InputError, match="found cpu, meta"):
        wrapped(model, recordings)(x, mask=x.to("meta"))


def test_traced_calls_are_the_modules_own(model, recordings):
    graphs = wrapped(model, recordings)
    program = torch.export.export(graphs, (torch.randn(2, 3),), strict=False)
    x = torch.randn(2, 3)
    torch.testing.assert_close(program.module()(x)["y"], model(x)["y"])
    assert recordings.recorded == 0


def test_a_copy_records_anew(model, recordings):
    graphs, x = wrapped(model, recordings), torch.randn(2, 3)
    graphs(x)
    other = copy.deepcopy(graphs)
    assert other.module is not model
    assert not other._recorded
    assert (other.max_graphs, other.outputs) == (4, "copied")


def test_arguments_and_devices_are_checked(model, monkeypatch):
    with pytest.raises(ConfigError, match=r"outputs = 'share'.*did you mean 'shared'"):
        fxq.cuda_graphs(model, outputs="share")
    with pytest.raises(ConfigError, match="max_graphs = 0: expected a positive integer"):
        fxq.cuda_graphs(model, max_graphs=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(FxQuantError, match="need a CUDA device, and torch finds none"):
        fxq.cuda_graphs(model)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(FxQuantError, match=r"this one has tensors on cpu. Move it first"):
        fxq.cuda_graphs(model)
