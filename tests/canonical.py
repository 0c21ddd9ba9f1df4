"""Canonical passes one at a time, on small captured modules."""

import torch
from torch import nn

from fxquant.graph import edit
from fxquant.graph.capture import capture
from fxquant.graph.text import to_text
from fxquant.passes.base import Pipeline
from fxquant.passes.canonicalize import CANONICAL, Sweep

POSITION = {each.name: position for position, each in enumerate(CANONICAL.passes)}


class Holding(nn.Module):
    """A function of one or two inputs and of named constants: parameters, or buffers where they are integers."""

    def __init__(self, function, **constants):
        super().__init__()
        self.function, self.names = function, tuple(constants)
        for name, value in constants.items():
            if value.is_floating_point():
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)

    def forward(self, x, y=None):
        inputs = (x,) if y is None else (x, y)
        return self.function(*inputs, **{name: getattr(self, name) for name in self.names})


def before(name, function, *inputs, dynamic=True, **constants):
    """Return the graph of a function as the pass of this name finds it."""
    gm = capture(Holding(function, **constants).eval(), inputs, dynamic=dynamic)
    return Pipeline(CANONICAL.passes[: POSITION[name]]).run(gm)


def after(name, gm):
    """Return a copy of `gm` after the pass of this name and a sweep, and how many changes the pass made."""
    copy = edit.clone(gm)
    count = CANONICAL.passes[POSITION[name]].apply(copy)
    Pipeline((Sweep(),)).run(copy)
    copy.graph.lint()
    copy.recompile()
    return copy, count


def calls(gm):
    """Return the names of the operators called, in order, without their namespace and overload."""
    return [
        str(node.target).split(".")[1] if "." in str(node.target) else node.name
        for node in gm.graph.nodes
        if node.op == "call_function"
    ]


def targets(gm):
    """Return the operators called, in order."""
    return [node.target for node in gm.graph.nodes if node.op == "call_function"]


def assert_same(a, b, *inputs, units=0.0):
    """Assert that two graphs give the same outputs: the same bits, or within `units` steps of the largest magnitude."""
    with torch.no_grad():
        for left, right in zip(_tensors(a(*inputs)), _tensors(b(*inputs)), strict=True):
            assert (left.dtype, left.shape) == (right.dtype, right.shape)
            step = (
                torch.finfo(left.dtype).eps * float(left.abs().max())
                if left.is_floating_point() and left.numel()
                else 0.0
            )
            torch.testing.assert_close(left, right, rtol=0, atol=units * step, equal_nan=True)


def story(name, gm):
    """Return the text of a graph before and after a pass, for goldens."""
    changed, _ = after(name, gm)
    return f"before {name}:\n{to_text(gm)}\nafter:\n{to_text(changed)}"


def _tensors(value):
    return list(value) if isinstance(value, (tuple, list)) else [value]
