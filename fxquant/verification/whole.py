"""Whole graphs as a backend lowers them, on a device, called with the values of their placeholders alone."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fxquant.backends import Backend
from fxquant.errors import FxQuantError
from fxquant.graph import edit
from fxquant.graph.place import move
from fxquant.graph.signature import without_signature
from fxquant.kernels.devices import CPU, DEVICES, Device
from fxquant.portable import portable
from fxquant.program import Program
from fxquant.stages import lower

# Takes the values of a graph's placeholders and returns its outputs, tensors on the CPU.
Call = Callable[[Sequence[Tensor]], Sequence[Any]]


def converted_graphs(graph: fx.GraphModule | Program) -> dict[str, fx.GraphModule]:
    """Return the Q/DQ graphs of a graph ("" is its name then) or of a Program, by name.

    Raises:
        FxQuantError: a graph is not quantized, or has observers.
    """
    graphs = graph.graphs if isinstance(graph, Program) else {"": graph}
    found = {name: portable(gm) for name, gm in graphs.items()}
    if any(edit.marks(gm).get("stage") != "converted" for gm in found.values()):
        raise FxQuantError("only a quantized graph can be verified: this one is captured only")
    return found


def as_call(gm: fx.GraphModule) -> Call:
    """Return a graph as a call that does not track gradients."""
    flat = without_signature(gm)

    def call(inputs: Sequence[Tensor]) -> Sequence[Any]:
        with torch.no_grad():
            found: Sequence[Any] = flat(*inputs)
        return found

    return call


def lowered_on(device: Device, gm: fx.GraphModule, backend: Backend) -> Call:
    """Return a Q/DQ graph as a backend lowers it on a device; the call brings inputs there and outputs back."""
    with device.entered():
        inner = as_call(lower(on(device, gm), backend))

    def call(inputs: Sequence[Tensor]) -> Sequence[Any]:
        with device.entered():
            found = inner([value.to(device.place) for value in inputs])
            return [value.to(CPU) if isinstance(value, Tensor) else value for value in found]

    return call


def on(device: Device, gm: fx.GraphModule) -> fx.GraphModule:
    """Return a copy of a graph with its tensors where the device has them."""
    copied = edit.clone(gm)
    if device.place != CPU:
        move([copied], device.place)
    return copied


def devices_of(backend: Backend) -> Iterable[Device]:
    """Return what the kernels of a backend can run on here, or could if this machine had it."""
    return DEVICES[backend.kernels]() if backend.kernels in DEVICES else [Device("this machine")]
