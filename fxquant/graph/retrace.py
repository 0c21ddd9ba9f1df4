"""A graph of torch-level calls, traced again to ATen calls under the fake tensors that it came with."""

from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedOperatorException,
)
from torch.fx import traceback
from torch.fx.experimental.proxy_tensor import make_fx

from fxquant.errors import CaptureError

FakeTensorError = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException)

# Switches that a graph need not carry out: fxquant's graphs run outside autograd and autocast.
_SWITCHES = ("_set_grad_enabled", "_enter_autocast", "_exit_autocast")
_DIFFERENTIATES = ("_grad_increment_nesting", "_autograd_grad")
_TRAINS = {"dropout": 2, "batch_norm": 5, "instance_norm": 5}  # the argument that says so


def retrace(gm: fx.GraphModule, fakes: Sequence[Any]) -> fx.GraphModule:
    """Return the ATen graph of `gm`, one placeholder for each of its own, with what is known of each value in `val`.

    Sizes that the trace relies on, and every float that is no tensor, become guards of the fakes' shape environment.

    Raises:
        CaptureError: the graph trains, computes under autocast, or does what cannot be traced.
    """
    mode = detect_fake_mode(fakes)
    assert mode is not None, "Dynamo describes the inputs of its graphs by fake tensors"
    plain = _plain(gm)
    with (
        patch.object(mode, "allow_non_fake_inputs", True),  # constants of the graph are real
        traceback.preserve_node_meta(),
        enable_python_dispatcher(),
        torch.no_grad(),
        mode,
    ):
        try:
            # inside torch.vmap operators are known only after they were taken apart
            traced: fx.GraphModule = make_fx(fx.Interpreter(plain).run, pre_dispatch=not _transforms(plain))(*fakes)
        except FakeTensorError as error:  # Dynamo would take it for a wish to run the float model
            raise CaptureError(f"the compiled code cannot be traced: {error}") from None
    _refuse_training(traced)
    return traced


def _transforms(gm: fx.GraphModule) -> bool:
    """Say whether a graph enters a transform of torch.func."""
    return any("functorch" in (getattr(node.target, "__module__", None) or "") for node in gm.graph.nodes)


def _refuse(node: fx.Node) -> None:
    """Raise for what has no form as ATen calls outside autograd."""
    name = getattr(node.target, "__name__", "")
    if name in _DIFFERENTIATES:
        text = "the compiled code differentiates (torch.func.grad), and fxquant's graphs run outside autograd"
        raise CaptureError(f"{text}: take the gradient of the float model, outside torch.compile")
    if isinstance(node.target, torch._ops.HigherOrderOperator):
        text = f"the compiled code calls {name}, which holds graphs of its own"
        raise CaptureError(
            f"{text}: leave it out, or keep it outside by torch.compiler.disable on the function around it"
        )


def _plain(gm: fx.GraphModule) -> fx.GraphModule:
    """Return a copy whose floats are constants, without switches of autograd and of an autocast that is off anyway."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(gm.graph, copies := dict[fx.Node, fx.Node]()))
    for old, new in copies.items():
        new.meta = dict(old.meta)
    for node in reversed(list(graph.nodes)):
        name = getattr(node.target, "__name__", "")
        _refuse(node)
        if name == "_enter_autocast" and node.args[2]:
            found = f"the compiled code computes under autocast ({node.args[0]}, {node.args[1]})"
            raise CaptureError(f"{found}, and fxquant takes float32: call the model outside torch.autocast")
        if name in _SWITCHES:
            graph.erase_node(node)
        elif isinstance(node.meta.get("example_value"), torch.SymFloat):
            _fix(node)
    return fx.GraphModule(gm, graph)


def _fix(node: fx.Node) -> None:
    """Let the readers of a float read its value, which Dynamo then guards: norms and scales need to be known."""
    value = float(node.meta["example_value"])
    for user in list(node.users):
        user.args, user.kwargs = fx.map_arg((user.args, user.kwargs), lambda each: value if each is node else each)
    node.graph.erase_node(node)


def _refuse_training(gm: fx.GraphModule) -> None:
    for node in gm.graph.nodes:
        at = _TRAINS.get(getattr(node.target, "_opname", ""), len(node.args))
        if at < len(node.args) and node.args[at] is True:
            raise CaptureError(f"the compiled model is in training mode ({node.target}): call model.eval() first")
