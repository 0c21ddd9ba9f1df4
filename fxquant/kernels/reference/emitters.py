"""The reference kernel set: pure PyTorch integer arithmetic, the meaning of every other set."""

import torch

from fxquant.kernels.devices import Device, devices
from fxquant.kernels.emit import (
    LINEARS,
    embedding_emitter,
    fp8_emitter,
    grouped_emitter,
    linear_emitter,
    matmul_emitter,
    weight_only_emitter,
)
from fxquant.kernels.emit_conv import CONVOLUTIONS, conv_emitter
from fxquant.kernels.reference import conv, embedding, fp8, grouped, linear, matmul, weight_only
from fxquant.kernels.table import emitter

__all__ = ["conv", "embedding", "fp8", "grouped", "linear", "matmul", "weight_only"]  # importing them defines the ops

ops = torch.ops.fxquant

emitter("reference", "linear_int8", serves=LINEARS, needs=("weight",))(
    linear_emitter(ops.linear_int8.default, ops.linear_weight_int8.default)
)
emitter("reference", "linear_weight_only", serves=LINEARS, needs=("weight",))(
    weight_only_emitter(ops.linear_weight_only.default)
)
emitter("reference", "linear_fp8", serves=LINEARS, needs=("x", "weight"))(fp8_emitter(ops.linear_fp8.default))
emitter("reference", "grouped_linear_int8", serves=("grouped_linear",), needs=("weight",))(
    grouped_emitter(ops.grouped_linear_int8.default, ops.grouped_linear_weight_int8.default)
)
emitter("reference", "conv_int8", serves=CONVOLUTIONS, needs=("x", "weight"))(conv_emitter(ops.conv_int8.default))
emitter("reference", "embedding_int8", serves=("embedding",), needs=("weight",))(
    embedding_emitter(ops.embedding_int8.default)
)
emitter("reference", "matmul_int8", serves=("matmul",), needs=("a", "b"))(matmul_emitter(ops.matmul_int8.default))
devices("reference")(lambda: [Device("torch, any device")])
