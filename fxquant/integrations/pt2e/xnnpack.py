"""What XNNPACK's products take: the passes that bring a Q/DQ graph there, and the check of what came out.

An integer linear of XNNPACK has int8 weights with a scale for each row, or int4 ones with a scale for each group, and a
bias in float. Its activations are int8, quantized at run time with a scale and a zero point for each token, or, under
weights by row, with fixed scales, in and out. An integer convolution has fixed scales.
"""

from torch import fx

from fxquant.errors import ExportError
from fxquant.graph import edit
from fxquant.integrations.pt2e.float_moves import FloatMoves
from fxquant.integrations.pt2e.products import LINEAR, calls_of, has_integer_weight, spec_of
from fxquant.integrations.pt2e.xnnpack_activations import SignedIntegers, TokenScales
from fxquant.integrations.pt2e.xnnpack_weights import FloatBiases, FloatFilters, GroupScales, RowScales
from fxquant.passes.qdq_nodes import DEQUANTIZE_GROUPS

PASSES = (
    FloatMoves(), FloatBiases(), RowScales(), GroupScales(), TokenScales(), FloatFilters(), SignedIntegers(),
)  # fmt: skip
_GROUP = 32  # XNNPACK's groups are of a multiple of this


def check_linears(dialect: fx.GraphModule) -> None:
    """Raise `ExportError` naming the first linear with a weight of integers that XNNPACK has no integer linear for."""
    for node in filter(has_integer_weight, calls_of(dialect, LINEAR)):
        weight = node.args[1]
        spec = spec_of(weight)
        found = f"its weight is {spec.dtype} {spec.granularity} {spec.group_size or ''}".rstrip()
        if weight.target is DEQUANTIZE_GROUPS:  # type: ignore[union-attr]
            known = edit.info(weight)  # type: ignore[arg-type]
            whole = known is not None and known.shape[-1] % (spec.group_size or 1) == 0
            if (spec.dtype, spec.symmetric) != ("int4", True) or (spec.group_size or 0) % _GROUP or not whole:
                advice = f"int4, symmetric, in whole groups of a multiple of {_GROUP}, as by {_SYMMETRIC}"
                kind = "" if spec.symmetric else ", affine"
                raise ExportError(_refusal(node, f'{found}{kind}: give it dtype = {advice}, or use recipe = "dynamic"'))
        elif (spec.dtype, spec.granularity, spec.symmetric, spec.axis) != ("int8", "per-channel", True, 0):
            raise ExportError(_refusal(node, f'{found}: give it dtype = "int8", symmetric, for each row'))


_SYMMETRIC = 'Recipe(base="weight-only-int4", specs={"weight": {"symmetric": True}})'


def _refusal(node: fx.Node, advice: str) -> str:
    path = edit.path_of(node)
    return f"%{node.name} ({node.target}){f' in module {path}' if path else ''} cannot be written for xnnpack: {advice}"
