"""What XNNPACK's linears take: the passes that bring a Q/DQ graph there, and the check of what came out.

An integer linear of XNNPACK has int8 weights with a scale for each row, and a bias in float. Its activations are int8,
quantized at run time with a scale and a zero point for each token, or, with fixed scales, in and out.
"""

from torch import fx

from fxquant.errors import ExportError
from fxquant.graph import edit
from fxquant.integrations.pt2e.float_moves import LINEAR, FloatMoves
from fxquant.integrations.pt2e.xnnpack_activations import SignedIntegers, TokenScales
from fxquant.integrations.pt2e.xnnpack_weights import FloatBiases, RowScales
from fxquant.passes.qdq_nodes import DEQUANTIZE, DEQUANTIZE_GROUPS
from fxquant.spec import QuantSpec

PASSES = (FloatMoves(), FloatBiases(), RowScales(), TokenScales(), SignedIntegers())


def check_linears(dialect: fx.GraphModule) -> None:
    """Raise `ExportError` naming the first linear with a weight of integers that XNNPACK has no integer linear for."""
    for node in dialect.graph.find_nodes(op="call_function", target=LINEAR):
        x, weight = node.args[:2]
        if weight.target is DEQUANTIZE_GROUPS:
            raise ExportError(_refusal(node, 'give its weight dtype = "int8" and granularity = "per-channel"'))
        if weight.target is not DEQUANTIZE:
            continue
        if x.target is not DEQUANTIZE:
            raise ExportError(_refusal(node, 'XNNPACK multiplies integers with integers: use recipe = "dynamic"'))
        spec = QuantSpec.from_dict(edit.marks(weight)["spec"])
        if (spec.dtype, spec.granularity, spec.symmetric, spec.axis) != ("int8", "per-channel", True, 0):
            found = f"its weight is {spec.dtype} {spec.granularity}"
            raise ExportError(_refusal(node, f'{found}: give it dtype = "int8", symmetric, for each row'))


def _refusal(node: fx.Node, advice: str) -> str:
    path = edit.path_of(node)
    return f"%{node.name} ({node.target}){f' in module {path}' if path else ''} cannot be written for xnnpack: {advice}"
