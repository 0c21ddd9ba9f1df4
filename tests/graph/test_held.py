"""Held tensors are those that a module has now, however they were exchanged."""

import copy

import pytest
import torch
from torch import nn

from fxquant.graph.held import hold

PATHS = [("0", "weight"), ("0", "bias"), ("1", "mean"), ("plain",)]


@pytest.fixture
def root():
    norm = nn.Module()
    norm.register_buffer("mean", torch.zeros(2))
    root = nn.Sequential(nn.Linear(2, 2), norm)
    root.plain = torch.ones(1)
    return root


def test_tensors_are_found_by_their_paths(root):
    held = hold(root, PATHS)
    assert [id(each) for each in held.tensors] == [
        id(t) for t in (root[0].weight, root[0].bias, root[1].mean, root.plain)
    ]
    assert held.current(root)
    root.eval()
    root[0].weight.data = torch.ones(2, 2)  # the same tensor, of other memory
    assert held.current(root)
    assert hold(root, []).current(root)


@pytest.mark.parametrize(
    "change",
    [
        lambda root: setattr(root[0], "weight", nn.Parameter(torch.zeros(2, 2))),
        lambda root: root[1]._buffers.update(mean=torch.ones(2)),
        lambda root: root[1].register_buffer("mean", None),
        lambda root: root.double(),
        lambda root: root.__setitem__(1, copy.deepcopy(root[1])),
        lambda root: setattr(root, "plain", torch.ones(1)),
        lambda root: delattr(root[0], "bias"),
    ],
    ids=["parameter", "dict", "none", "dtype", "module", "attribute", "gone"],
)
def test_whatever_is_exchanged_is_seen(root, change):
    held = hold(root, PATHS)
    change(root)
    assert not held.current(root)


def test_they_are_one_modules(root):
    held = hold(root, PATHS)
    assert not held.current(copy.copy(root))
    with pytest.raises(AttributeError, match=r"there is no '0\.weigth' in the graph"):
        hold(root, [("0", "weigth")])
