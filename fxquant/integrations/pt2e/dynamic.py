"""Scales found at run time in the operators of `quantized_decomposed`."""

import operator
from typing import Any

import torch
from torch import fx

from fxquant.graph import edit
from fxquant.graph.edit import TensorInfo
from fxquant.integrations.pt2e.operators import decomposed
from fxquant.numerics import SMALLEST_SCALE
from fxquant.passes.qdq_nodes import CHOOSE_QPARAMS, DEQUANTIZE, QUANTIZE
from fxquant.spec import QuantSpec


def spell_dynamic(gm: fx.GraphModule) -> None:
    """Replace choose_qparams, quantize and dequantize where the dialect has an operator for the scheme.

    The dialect finds zero points of tokens for int8 alone: uint8 becomes that, with 128 less in integers and zero
    points. What has no operator stays.
    """
    for node in gm.graph.find_nodes(op="call_function", target=CHOOSE_QPARAMS):
        _, dtype, granularity, _, symmetric, scope = node.args
        if dtype not in ("int8", "uint8") or granularity == "per-channel" or not _is_plain(node):
            continue
        signed = "int8" if granularity == "per-token" and not symmetric else dtype
        spec = QuantSpec(dtype=signed, granularity=granularity, dynamic=True, symmetric=symmetric, range=scope)
        choose = _chooser(spec)
        if choose is not None:
            _rewrite(node, spec, choose)
    edit.sweep(gm)


def _is_plain(choose: fx.Node) -> bool:
    """Say whether scale and zero point are read by quantize and dequantize nodes alone, and integers by the latter."""
    readers = [user for part in choose.users for user in part.users]
    pairs = all(user.target in (QUANTIZE, DEQUANTIZE) for user in readers)
    return pairs and all(user.target is DEQUANTIZE for q in readers if q.target is QUANTIZE for user in q.users)


def _chooser(spec: QuantSpec) -> tuple[Any, tuple[Any, ...]] | None:
    """Return the operator that finds the scale of a spec, and its arguments behind the tensor."""
    operators = decomposed()
    dtype = spec.format.torch_dtype
    if spec.granularity == "per-token":
        if not spec.symmetric:
            return operators.choose_qparams_per_token_asymmetric.default, (dtype,)
        restricted = (spec.dtype, spec.range) == ("int8", "restricted")
        return (operators.choose_qparams_per_token.default, (dtype,)) if restricted else None
    arguments = (spec.qmin, spec.qmax, SMALLEST_SCALE, dtype)
    if not spec.symmetric:
        return operators.choose_qparams.tensor, arguments
    return (operators.choose_qparams_symmetric.tensor, arguments) if spec.dtype == "int8" else None


def _rewrite(choose: fx.Node, spec: QuantSpec, chooser: tuple[Any, tuple[Any, ...]]) -> None:
    graph, operators, (target, arguments) = choose.graph, decomposed(), chooser
    by_token = spec.granularity == "per-token"
    limits = (spec.qmin, spec.qmax, spec.format.torch_dtype)
    with graph.inserting_before(choose):
        both = edit.call(graph, target, (choose.args[0], *arguments), like=choose)
        scheme = [edit.call(graph, operator.getitem, (both, place), like=choose) for place in (0, 1)]
    readers = {user: None for part in choose.users for user in part.users}
    for node in readers:
        verb = "quantize" if node.target is QUANTIZE else "dequantize"
        name = f"{verb}_per_token" if by_token else f"{verb}_per_tensor"
        packet = getattr(operators, name)
        tail = (torch.float32,) if by_token and verb == "dequantize" else ()
        value = edit.info(node)
        if value is not None and verb == "quantize":
            value = TensorInfo(spec.format.torch_dtype, value.shape, value.dynamic)
        with graph.inserting_before(node):
            args = (node.args[0], *scheme, *limits, *tail)
            new = edit.call(graph, packet.default if by_token else packet.tensor, args, like=node, value=value)
        edit.replace(node, new)
