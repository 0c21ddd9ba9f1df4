"""The x86 kernel set: torch's integer GEMMs stand in where our own C++ kernels cannot be had."""

import torch

from fxquant.kernels.cpu.emitters import CpuKernels
from fxquant.kernels.emit import embedding_emitter, linear_emitter
from fxquant.kernels.x86 import devices, dynamic, linear, plain

__all__ = ["devices", "dynamic", "linear", "plain"]  # importing them defines the ops and registers the devices

ops = torch.ops.fxquant

CpuKernels(
    "x86",
    linear_emitter(
        ops.x86_linear_int8.default, ops.x86_linear_weight_int8.default, ops.x86_linear_dynamic_int8.default
    ),
    embedding_emitter(ops.x86_embedding_int8.default),
).register()
