"""The x86 kernel set, on the integer GEMMs that ship with torch."""

import torch

from fxquant.kernels.emit import embedding_emitter, linear_emitter
from fxquant.kernels.table import emitter
from fxquant.kernels.x86 import dynamic, linear, weight_only

__all__ = ["dynamic", "linear", "weight_only"]  # importing them defines the ops

ops = torch.ops.fxquant

emitter("x86", "linear_int8")(
    linear_emitter(ops.x86_linear_int8.default, ops.x86_linear_weight_int8.default, ops.x86_linear_dynamic_int8.default)
)
emitter("x86", "embedding_int8")(embedding_emitter(ops.x86_embedding_int8.default))
