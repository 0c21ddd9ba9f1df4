"""The quantizable ops and fusions, one family a file; importing this package registers them all."""

from fxquant.ops import attention, conv, embedding, experts, fused_conv, linear
from fxquant.ops.base import OPS, QuantOp, quant_op, weight_is_parameter

__all__ = [
    "OPS",
    "QuantOp",
    "attention",
    "conv",
    "embedding",
    "experts",
    "fused_conv",
    "linear",
    "quant_op",
    "weight_is_parameter",
]
