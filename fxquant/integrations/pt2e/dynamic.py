"""Scales found at run time in the operators of `quantized_decomposed`."""

import operator
from dataclasses import dataclass
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
    """Replace choose_qparams, quantize and dequantize where the dialect has operators for the scheme.

    What has none stays.
    """
    for node in gm.graph.find_nodes(op="call_function", target=CHOOSE_QPARAMS):
        _, dtype, granularity, axis, symmetric, scope = node.args
        spec = QuantSpec(
            dtype=dtype, granularity=granularity, axis=axis, symmetric=symmetric, range=scope, dynamic=True
        )
        dynamic = Dynamic(spec)
        if dynamic.known and _is_plain(node):
            _rewrite(node, dynamic)
    edit.sweep(gm)


def _is_plain(choose: fx.Node) -> bool:
    """Say whether scale and zero point are read by quantize and dequantize nodes alone, and integers by the latter."""
    readers = [user for part in choose.users for user in part.users]
    pairs = all(user.target in (QUANTIZE, DEQUANTIZE) for user in readers)
    return pairs and all(user.target is DEQUANTIZE for q in readers if q.target is QUANTIZE for user in q.users)


@dataclass(frozen=True)
class Dynamic:
    """A scheme with scales found at run time, as calls of the dialect.

    The dialect finds zero points of tokens for int8 alone: uint8 becomes that, with 128 less in integers and zero
    points.
    """

    spec: QuantSpec

    @property
    def known(self) -> bool:
        """Whether the dialect has operators for it."""
        spec = self.spec
        if spec.format.packed or spec.format.floating or spec.granularity not in ("per-tensor", "per-token"):
            return False
        if not spec.symmetric:
            return True
        return spec.dtype == "int8" and (spec.granularity == "per-tensor" or spec.range == "restricted")

    @property
    def written(self) -> QuantSpec:
        """The spec of the integers that the calls give."""
        by_token = self.spec.granularity == "per-token" and not self.spec.symmetric
        return QuantSpec.from_dict({**self.spec.to_dict(), "dtype": "int8"}) if by_token else self.spec

    def choose(self, source: fx.Node) -> list[fx.Node]:
        """Insert, where the graph inserts, what finds scale and zero point of a value; return their nodes."""
        operators, spec, graph = decomposed(), self.written, source.graph
        dtype = spec.format.torch_dtype
        if spec.granularity == "per-token":
            name = "choose_qparams_per_token"
            arguments: tuple[Any, ...] = (dtype,)
            target = getattr(operators, name if spec.symmetric else f"{name}_asymmetric").default
        else:
            arguments = (spec.qmin, spec.qmax, SMALLEST_SCALE, dtype)
            target = getattr(operators, "choose_qparams_symmetric" if spec.symmetric else "choose_qparams").tensor
        both = edit.call(graph, target, (source, *arguments), like=source)
        return [edit.call(graph, operator.getitem, (both, place), like=source) for place in (0, 1)]

    def convert(self, verb: str, source: fx.Node, scheme: list[fx.Node], known: TensorInfo | None) -> fx.Node:
        """Insert, where the graph inserts, a "quantize" or "dequantize" of a value."""
        spec, by_token = self.written, self.spec.granularity == "per-token"
        packet = getattr(decomposed(), f"{verb}_per_{'token' if by_token else 'tensor'}")
        tail = (torch.float32,) if by_token and verb == "dequantize" else ()
        args = (source, *scheme, spec.qmin, spec.qmax, spec.format.torch_dtype, *tail)
        if known is not None:
            dtype = spec.format.torch_dtype if verb == "quantize" else torch.float32
            known = TensorInfo(dtype, known.shape, known.dynamic)
        return edit.call(source.graph, packet.default if by_token else packet.tensor, args, like=source, value=known)

    def put(self, node: fx.Node) -> None:
        """Replace a call by what finds the scale of its argument, a quantize and a dequantize."""
        source: Any = node.args[0]
        with node.graph.inserting_before(node):
            scheme = self.choose(source)
            q = self.convert("quantize", source, scheme, None)
            edit.replace(node, self.convert("dequantize", q, scheme, None))


def _rewrite(choose: fx.Node, dynamic: Dynamic) -> None:
    source: Any = choose.args[0]
    with choose.graph.inserting_before(choose):
        scheme = dynamic.choose(source)
    for node in {user: None for part in choose.users for user in part.users}:
        verb, reads = "quantize" if node.target is QUANTIZE else "dequantize", node.args[0]
        with choose.graph.inserting_before(node):
            new = dynamic.convert(verb, reads, scheme, edit.info(node))  # type: ignore[arg-type]
        edit.replace(node, new)
