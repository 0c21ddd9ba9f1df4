"""Ops that hand on values they were given: quantizing before them or after them gives the same numbers.

quantize(op(x)) = op(quantize(x)) for one scale and zero point, exactly: these ops only move, repeat or select values
(max-pooling and relu select by an order that quantization keeps).
"""

import torch

import fxquant.kernels.cpu.pool  # registers an op of the set

assert fxquant.kernels.cpu.pool
aten = torch.ops.aten

# Ops whose first argument is the one tensor whose values they hand on, and that run on integers as they are.
MOVES_VALUES = {
    aten.view.default,
    aten.reshape.default,
    aten.transpose.int,
    aten.permute.default,
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.slice.Tensor,
    aten.select.int,
    aten.expand.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.clone.default,
    aten.contiguous.default,
    aten.t.default,
    aten.numpy_T.default,
    aten.repeat.default,
    aten.max_pool2d.default,  # torch has no integer max_pool1d
    aten.max_pool3d.default,
    torch.ops.fxquant.max_pool2d.default,
}
# Ops whose first argument is a list of such tensors.
JOINS_VALUES = {aten.cat.default, aten.stack.default}
# relu on integers is a clamp at the zero point.
RELU = aten.relu.default
