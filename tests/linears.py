"""What tests of linear kernels share: random operands by seed, activations, and the linear in float64."""

import torch
from torch.nn import functional

from fxquant.numerics import choose_qparams, quantize
from fxquant.spec import QuantSpec

ACTIVATIONS = {
    "none": lambda y: y,
    "relu": torch.relu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda y: functional.gelu(y, approximate="tanh"),
    "silu": functional.silu,
}
# The last arguments of ops that may requantize, for a result in float32.
FLOAT_OUTPUT = (None, None, 0, 0, torch.float32)
# Weights of weight-only linears: dtype, and whether they are symmetric.
WEIGHT_KINDS = [(dtype, symmetric) for dtype in ("int4", "uint4", "int8", "uint8") for symmetric in (True, False)]


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def integers(*shape, dtype=torch.int8, seed=0, low=None):
    """Return integers of the whole range of `dtype`, or from `low` on."""
    info, generator = torch.iinfo(dtype), torch.Generator().manual_seed(seed)
    return torch.randint(info.min if low is None else low, info.max + 1, shape, generator=generator).to(dtype)


def int32(value):
    return torch.tensor(value, dtype=torch.int32)


def integer_layer(n, k, seed=0):
    """Return an int8 weight (N, K), a scale for each of its rows, and a bias."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randint(-127, 128, (n, k), dtype=torch.int8, generator=generator)
    return weight, torch.rand(n, generator=generator) / 100 + 1e-4, torch.randn(n, generator=generator)


def weight_spec(dtype, symmetric, group):
    """Return the spec of a weight; a group of None stands for one scale a channel."""
    granularity = {None: "per-channel", "tensor": "per-tensor"}.get(group, "per-group")
    size = group if granularity == "per-group" else None
    return QuantSpec(dtype=dtype, symmetric=symmetric, granularity=granularity, group_size=size)


def quantized_weight(n, k, spec, seed=0):
    """Return the integers (N, K) of a random weight, and their scales and zero points."""
    weight = random(n, k, seed=seed)
    qparams = choose_qparams(weight, spec)
    return quantize(weight, qparams, spec), qparams


def in_float64(x, weight, bias, residual, activation):
    """Return activation(x·weightᵀ + bias) + residual."""
    y = functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    y = ACTIVATIONS[activation](y)
    return y if residual is None else y + residual
