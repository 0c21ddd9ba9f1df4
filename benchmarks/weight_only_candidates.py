"""Linears of one row or many and weights that fill memory: ours of 8 and 4 bits, torch's, torchao's, and floats.

Torch's own kernels of 8- and 4-bit weights are fast under bfloat16 activations only, so that is what they are given.
"""

import importlib
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

import fxquant.kernels  # noqa: F401  (defines the ops)
from fxquant.kernels.cpu import weight_only
from fxquant.numerics import choose_qparams, quantize
from fxquant.spec import QuantSpec

FILL = 1 << 28  # bytes
MOST = 64  # copies
SPECS = {
    "fxquant int8": QuantSpec(granularity="per-channel", symmetric=True),
    "fxquant int4 g32": QuantSpec(dtype="int4", granularity="per-group", group_size=32),
    "fxquant int4 g32 symmetric": QuantSpec(dtype="int4", granularity="per-group", group_size=32, symmetric=True),
    "fxquant int4 g128": QuantSpec(dtype="int4", granularity="per-group", group_size=128),
}
FLOAT, ONEDNN, HALF = "float32", "float32, oneDNN packed", "bfloat16"
TORCH_INT8, TORCH_INT4 = "torch int8, bfloat16", "torch int4 g32, bfloat16"
TORCHAO = "torchao int8, bfloat16"
aten = torch.ops.aten


class Candidate(NamedTuple):
    """What multiplies x with one copy of a weight, the copies, the bytes that one has, and the dtype of x."""

    multiply: Callable[[Tensor, Any], Tensor]
    weights: list[Any]
    size: int
    dtype: torch.dtype = torch.float32


def count(size: int) -> int:
    """Return how many copies of a weight of `size` bytes fill the memory that is set aside."""
    return min(max(FILL // size, 1), MOST)


def copies(weight: Tensor, size: int) -> list[Tensor]:
    """Return copies of a packed weight of `size` bytes in all, so that none stays in a cache."""
    return [weight.clone() for _ in range(count(size))]


def ours(weight: Tensor, spec: QuantSpec) -> Candidate:
    """Return our kernel on a float weight (N, K) quantized by `spec`."""
    n, k = shape = tuple(weight.shape)
    qparams = choose_qparams(weight, spec)
    packed = weight_only.pack(quantize(weight, qparams, spec), spec)
    scale = weight_only.pack_parameter(qparams.scale, shape, spec)
    zeros = None if spec.symmetric else weight_only.pack_parameter(qparams.zero_point, shape, spec)
    size = packed.numel() + 4 * scale.numel() + (0 if zeros is None else zeros.numel())
    own = [(packed.clone(), scale.clone(), None if zeros is None else zeros.clone()) for _ in range(count(size))]
    group = weight_only.group_size(spec, k)
    op = torch.ops.fxquant.packed_linear_weight_only.default
    return Candidate(lambda x, each: op(x, *each, None, None, "none", n, group), own, size)


def torch_int8(weight: Tensor) -> Candidate:
    """Return torch's kernel on a float weight (N, K), one scale a channel."""
    spec = SPECS["fxquant int8"]
    qparams = choose_qparams(weight, spec)
    scale = qparams.scale.bfloat16()
    size = weight.numel() + 2 * len(scale)
    op = aten._weight_int8pack_mm.default
    found = copies(quantize(weight, qparams, spec), size)
    return Candidate(lambda x, each: op(x, each, scale), found, size, torch.bfloat16)


def torch_int4(weight: Tensor, group: int = 32) -> Candidate:
    """Return torch's kernel on a float weight (N, K), affine in groups; it computes S·(q − 8) + z."""
    spec = QuantSpec(dtype="uint4", granularity="per-group", group_size=group)
    qparams = choose_qparams(weight, spec)
    packed = aten._convert_weight_to_int4pack_for_cpu(quantize(weight, qparams, spec).int(), 1)
    zeros = (8 - qparams.zero_point) * qparams.scale
    both = torch.stack((qparams.scale.t(), zeros.t()), dim=-1).contiguous().bfloat16()
    size = packed.numel() + 2 * both.numel()
    own = [(packed.clone(), both.clone()) for _ in range(count(size))]
    op = aten._weight_int4pack_mm_for_cpu.default
    return Candidate(lambda x, each: op(x, each[0], group, each[1]), own, size, torch.bfloat16)


def onednn(weight: Tensor) -> Candidate:
    """Return oneDNN's float32 product with a packed weight (N, K)."""
    size = 4 * weight.numel()
    packed = [torch.ops.mkldnn._reorder_linear_weight(each) for each in copies(weight, size)]
    op = torch.ops.mkldnn._linear_pointwise.default
    return Candidate(lambda x, each: op(x, each, None, "none", [], ""), packed, size)


def torchao_int8(weight: Tensor) -> Candidate:
    """Return torchao's weight-only int8 without compilation: it makes bfloat16 weights at each call."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantization = importlib.import_module("torchao.quantization")
    size = weight.numel() + 2 * len(weight)
    with torch.inference_mode(False):
        layers = nn.Sequential(*(nn.Linear(weight.shape[1], len(weight), bias=False) for _ in range(count(size))))
        for layer in layers:
            layer.weight = nn.Parameter(weight.clone().bfloat16(), requires_grad=False)
        quantization.quantize_(layers, quantization.Int8WeightOnlyConfig())
    return Candidate(functional.linear, [layer.weight for layer in layers], size, torch.bfloat16)


def candidates(depth: int, width: int) -> dict[str, Candidate]:
    """Return what is compared for one weight."""
    weight = torch.randn(width, depth) / depth**0.5
    size = 2 * weight.numel()
    found = {
        FLOAT: Candidate(functional.linear, copies(weight, 2 * size), 2 * size),
        ONEDNN: onednn(weight),
        HALF: Candidate(functional.linear, copies(weight.bfloat16(), size), size, torch.bfloat16),
        TORCH_INT8: torch_int8(weight),
        TORCH_INT4: torch_int4(weight),
    }
    if importlib.util.find_spec("torchao"):
        found[TORCHAO] = torchao_int8(weight)
    return found | {name: ours(weight, spec) for name, spec in SPECS.items()}
