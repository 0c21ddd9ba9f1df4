"""Small captured graphs for tests of the layers above capture."""

import torch
from torch import nn

import fxquant as fxq
from fxquant.backends import read_backend
from fxquant.graph.capture import capture
from fxquant.passes.canonicalize import CANONICAL


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def canonical_graph(model, *inputs):
    """Return the canonical graph of a module called with positional inputs."""
    with torch.no_grad():
        return CANONICAL.run(capture(model.eval(), inputs, dynamic=False))


def lowered_graph(model, *inputs, recipe="dynamic", backend="x86", passes=()):
    """Return a graph lowered by a packaged backend that lists these passes instead of its own."""
    data = {**fxq.load_backend(backend).to_dict(), "lower": {"passes": list(passes)}}
    options = {"backend": read_backend(data, "test"), "recipe": recipe, "calibration": [inputs], "progress": False}
    with torch.no_grad():
        return fxq.quantize(model.eval(), inputs, **options)


def last_call(gm):
    """Return the last call in a graph."""
    return [node for node in gm.graph.nodes if node.op == "call_function"][-1]
