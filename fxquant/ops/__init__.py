"""The quantizable ops and fusions, one family a file; importing this package registers them all."""

from fxquant.ops import attention, conv, embedding, linear
from fxquant.ops.base import OPS, QuantOp, quant_op, weight_is_parameter

__all__ = ["OPS", "QuantOp", "attention", "conv", "embedding", "linear", "quant_op", "weight_is_parameter"]
