"""Small captured graphs for tests of the layers above capture."""

import torch
from models import tensors
from torch import nn

import fxquant as fxq
from fxquant.backends import read_backend
from fxquant.graph import edit
from fxquant.graph.capture import capture
from fxquant.passes.canonicalize import CANONICAL


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


class Two(nn.Module):
    """Two linears with a graph break between them where `broken`; the second may be called again."""

    def __init__(self, broken=False, widths=(16, 32, 8), again=False):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.second = nn.Linear(*widths[:2]), nn.Linear(*widths[1:])
        self.broken, self.again = broken, again
        self.eval()

    def forward(self, x):
        x = torch.relu(self.first(x))
        if self.broken:
            torch._dynamo.graph_break()
        x = self.second(x)
        return self.second(x * 3) if self.again else x


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


def applied(gm, *passes):
    """Return a copy of a graph after some passes, and how many changes they made."""
    copy = edit.clone(gm)
    count = sum(each.apply(copy) for each in passes)
    copy.graph.lint()
    copy.recompile()
    return copy, count


def outputs(gm, inputs):
    """Return the tensors that a graph gives for keyword arguments, or for positional ones."""
    with torch.no_grad():
        found = gm(**inputs) if isinstance(inputs, dict) else gm(*inputs)
    return tensors(found)


def nodes(gm, target):
    """Return the nodes that call `target`."""
    return [node for node in gm.graph.nodes if node.target is target]


def last_call(gm):
    """Return the last call in a graph."""
    return [node for node in gm.graph.nodes if node.op == "call_function"][-1]
