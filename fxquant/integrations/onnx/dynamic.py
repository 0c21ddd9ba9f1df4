"""Scales found at run time, in the one form that ONNX has: a uint8 tensor with one scale."""

import operator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from fxquant.graph import edit
from fxquant.graph.edit import TensorInfo
from fxquant.integrations.onnx.ops import DYNAMIC_QUANTIZE, SPEC
from fxquant.integrations.substitutions import note
from fxquant.passes.qdq_nodes import CHOOSE_QPARAMS, QUANTIZE
from fxquant.spec import FORMATS

_AS_WANTED = (SPEC.dtype, SPEC.granularity, SPEC.axis, SPEC.symmetric)
_NUMBER = TensorInfo(torch.float32, (), ())


@dataclass(frozen=True)
class PerTensorDynamic:
    """choose_qparams and quantize → dynamic_quantize: one scale for the whole tensor, affine, uint8.

    Other numbers where the recipe asks for another granularity, as per-token ones do. float8 is left: it has no form.
    """

    name: ClassVar[str] = "per_tensor_dynamic"
    after: ClassVar[tuple[str, ...]] = ()

    def apply(self, gm: fx.GraphModule) -> int:
        """Return how many dynamic scales were rewritten."""
        nodes = [
            node
            for node in gm.graph.find_nodes(op="call_function", target=CHOOSE_QPARAMS)
            if not FORMATS[node.args[1]].floating
        ]
        for node in nodes:
            dtype, granularity = node.args[1:3]
            if tuple(node.args[1:5]) != _AS_WANTED:
                text = f"{dtype} {granularity} becomes uint8 per-tensor: DynamicQuantizeLinear has one scale a tensor"
                note(gm, node, "per-tensor dynamic", text, exact=False)
            _rewrite(gm, node)
        edit.sweep(gm)
        return len(nodes)


def _rewrite(gm: fx.GraphModule, choose: fx.Node) -> None:
    x = choose.args[0]
    assert isinstance(x, fx.Node)
    known = edit.info(x)
    whole = TensorInfo(torch.uint8, known.shape, known.dynamic) if known else None
    with gm.graph.inserting_before(choose):
        both = edit.call(gm.graph, DYNAMIC_QUANTIZE, (x,), like=choose)
        values = (whole, _NUMBER, TensorInfo(torch.uint8, (), ()))
        q, scale, zero_point = (
            edit.call(gm.graph, operator.getitem, (both, place), like=choose, value=value)
            for place, value in enumerate(values)
        )
    for part in list(choose.users):
        quantizes = [user for user in part.users if user.target is QUANTIZE]
        part.replace_all_uses_with((scale, zero_point)[part.args[1]])  # type: ignore[index]
        for each in quantizes:
            each.replace_all_uses_with(q)
    for user in (*scale.users, *q.users):
        if "spec" in edit.marks(user):
            edit.mark(user, spec=SPEC.to_dict())
