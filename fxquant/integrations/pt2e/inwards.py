"""`from_pt2e`: what `convert_pt2e` returns becomes a converted graph of fxquant."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from fxquant.backends import Backend, load_backend
from fxquant.errors import CaptureError
from fxquant.graph import edit, structure
from fxquant.graph.capture import capture_whole
from fxquant.graph.checks import checked_example
from fxquant.graph.example import forward_parameters
from fxquant.graph.foreign import ENTRANCES, Entrance
from fxquant.graph.signature import SignatureCodeGen
from fxquant.integrations.pt2e.affine import is_part, unwrapped
from fxquant.integrations.pt2e.operators import called
from fxquant.integrations.pt2e.translate import FromDecomposed
from fxquant.passes.annotate import Annotate
from fxquant.passes.base import Pipeline
from fxquant.passes.canonicalize import CANONICAL
from fxquant.passes.share_qparams import ShareQParams
from fxquant.recipe import Recipe

BACKEND = "x86"  # as that of `prepare`
_OBSERVERS = {"ObserverBase", "FakeQuantizeBase", "AffineQuantizedObserverBase"}


def from_pt2e(
    converted: fx.GraphModule, example_inputs: Any = None, *, backend: str | Path | Backend = BACKEND
) -> fx.GraphModule:
    """Return the Q/DQ graph of fxquant for a graph that `convert_pt2e` made; `lower` does so by itself.

    Its quantize, dequantize and choose_qparams become fxquant's, weights integer constants, and its ops are claimed
    for a backend. It computes what the given graph does, to a step of the quantized values. The graph that is given is
    left as it is; tensors are shared with it.

    Args:
        converted: a graph with `quantized_decomposed` operators, as torchao's `convert_pt2e` returns, or with torchao's
            affine ones, as torch.export makes of a model that torchao's `quantize_` quantized.
        example_inputs: as for `capture`; by default zeros of the shapes and sizes that the graph was exported with.
        backend: whose rules claim the ops; `lower` may be given another one.

    Raises:
        CaptureError: the graph is prepared and not converted; or it holds an operator, or a scheme, that fxquant has no
            form for.
        ConfigError: an unknown or invalid backend.
    """
    chosen = load_backend(backend)
    _check_converted(converted)
    converted = unwrapped(converted)
    example = checked_example(converted, example_inputs if example_inputs is not None else _example(converted))
    # where sizes are fixed, the exported graph has fixed them, and takes no others itself
    gm, _ = capture_whole(converted, example, True, lambda *_: None)
    _take_paths(gm, converted)
    Pipeline((*CANONICAL.passes, FromDecomposed(), Annotate(chosen, None), ShareQParams())).run(gm)
    Annotate(chosen, None).apply(gm)  # results are followed by their quantize only now
    recipe = Recipe(name="pt2e").to_dict()
    edit.mark(gm, stage="converted", capture={"rung": "convert_pt2e"}, backend=chosen.to_dict(), recipe=recipe)
    return gm


def _check_converted(gm: fx.GraphModule) -> None:
    """Raise where a graph still has observers, or nothing of it is quantized."""
    if not isinstance(gm, fx.GraphModule):
        raise CaptureError(f"from_pt2e takes the GraphModule that convert_pt2e returns, got a {type(gm).__name__}")
    for name, module in gm.named_modules():
        if _observes(module):
            found = f"the graph is prepared and not converted: {name} is a {type(module).__name__}"
            raise CaptureError(f"{found}; calibrate it, and give what convert_pt2e makes of it")
    if not any(called(node) or is_part(node) for node in gm.graph.nodes):
        raise CaptureError(
            "no operator of quantized_decomposed, nor an affine one of torchao, is in the graph: nothing is quantized"
        )


def _observes(module: nn.Module) -> bool:
    return any(base.__name__ in _OBSERVERS for base in type(module).__mro__)


def _example(gm: fx.GraphModule) -> dict[str, Any]:
    """Return zeros for what the graph takes, by the names of its arguments."""
    leaves = []
    for node in gm.graph.find_nodes(op="placeholder"):
        known = edit.info(node)
        value = node.meta.get("val")
        if known is None and value is None:
            raise CaptureError(f"nothing is known of the input %{node.name}: give from_pt2e example_inputs")
        leaves.append(torch.zeros(known.shape, dtype=known.dtype, device=value.device) if known else value)
    codegen = gm.graph._codegen
    if isinstance(codegen, SignatureCodeGen):
        given: dict[str, Any] = structure.build(codegen.signature.inputs, leaves)
        return given
    args, kwargs = tuple(leaves), dict[str, Any]()
    if isinstance(codegen, fx.graph._PyTreeCodeGen):
        args, kwargs = pytree.tree_unflatten(leaves, codegen.pytree_info.in_spec)
    names = [parameter.name for parameter in forward_parameters(gm)]
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _take_paths(gm: fx.GraphModule, source: fx.GraphModule) -> None:
    """Give calls the module paths that they had before the graph was captured again.

    The calls of one operator come in the same order, and are the same where they are as many.
    """
    theirs: dict[Any, list[fx.Node]] = {}
    for node in source.graph.nodes:
        theirs.setdefault(node.target, []).append(node)
    ours: dict[Any, list[fx.Node]] = {}
    for node in gm.graph.nodes:
        ours.setdefault(node.target, []).append(node)
    for target, nodes in ours.items():
        if nodes[0].op == "call_function" and len(nodes) == len(theirs.get(target, ())):
            for new, old in zip(nodes, theirs[target], strict=True):
                edit.mark(new, path=module_path(old) or None)


def module_path(node: fx.Node) -> str:
    """Return the path of the innermost module that an exported call is in."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return re.sub(r"@\d+", "", str(stack[-1][0])) if stack else ""


def _knows(gm: fx.GraphModule) -> bool:
    quantized = any(called(node) or is_part(node) for node in gm.graph.nodes)
    return quantized or any(_observes(module) for module in gm.modules())


ENTRANCES.add("pt2e", Entrance(_knows, from_pt2e))
