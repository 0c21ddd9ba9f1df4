"""Inputs and results of the Python reference kernels in one binary file, which check.cpp holds the C++ core to.

A file is the number of cases, and for each its kind, its number of arrays, and each array's size in bytes and content;
all numbers are int32. vectors.h reads it.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from fxquant.kernels import qdq
from fxquant.kernels.cpu import weight_only
from fxquant.kernels.cpu.packed import column_sums, pack
from fxquant.kernels.reference.embedding import embedding_int8
from fxquant.kernels.reference.linear import linear_int8
from fxquant.kernels.reference.weight_only import linear_weight_only
from fxquant.spec import QuantSpec

ROWS, LINEAR, WEIGHT_ONLY, EMBEDDING = range(4)
ACTIVATIONS = ("none", "relu", "gelu", "gelu_tanh", "silu")  # in the order of core.h
Case = tuple[int, list[Tensor]]


def ints(*values: int) -> Tensor:
    """Return the sizes and modes of a case."""
    return torch.tensor(values, dtype=torch.int32)


def as_stored(q: Tensor) -> Tensor:
    """Return activations as the core stores them: u8, 128 more where they are signed."""
    return q if q.dtype is torch.uint8 else (q.to(torch.int16) + 128).to(torch.uint8)


def padded(q: Tensor) -> Tensor:
    """Return rows filled up with zeros to whole depths."""
    return torch.nn.functional.pad(q, (0, -q.shape[1] % 4))


def rows(generator: torch.Generator) -> Iterator[Case]:
    """Yield rows quantized at run time, by every scheme and at sizes from subnormal numbers to the end of float32."""
    for dtype, symmetric, span in (
        ("uint8", False, "restricted"),
        ("uint8", True, "restricted"),
        ("int8", False, "restricted"),
        ("int8", True, "restricted"),
        ("int8", True, "full"),
    ):
        spec = QuantSpec(dtype=dtype, granularity="per-token", symmetric=symmetric, dynamic=True, range=span)
        signed = dtype == "int8"
        middle = 0 if signed else 128
        narrow = symmetric and not (signed and span == "full")
        divisor = spec.qmax - middle if narrow else (spec.qmax - spec.qmin) / 2
        scheme = ints(symmetric, spec.qmin, spec.qmax, middle, 128 if signed else 0)
        for k in (1, 5, 32, 75):
            size = torch.tensor([0.0, 1e-41, 1e-33, 1e-3, 1.0, 40.0, 3e38])[:, None]
            x = (torch.rand(len(size), k, generator=generator) - 0.4) * size
            scale, zero_point = qdq.choose_qparams(x, dtype, "per-token", None, symmetric, span)
            q = qdq.quantize(x, scale, zero_point, None, spec.qmin, spec.qmax, spec.format.torch_dtype)
            given = [ints(len(x), k), scheme, torch.tensor(divisor, dtype=torch.float32), x]
            yield ROWS, [*given, padded(as_stored(q)), scale, zero_point + (128 if signed else 0)]


def linears(generator: torch.Generator) -> Iterator[Case]:
    """Yield linears on integer activations: their float results, and these requantized."""
    for number, (m, n, k) in enumerate(((1, 1, 1), (2, 70, 33), (6, 130, 64), (7, 64, 7), (13, 5, 130), (3, 66, 1100))):
        for activation in range(len(ACTIVATIONS)):
            x = torch.randint(0, 256, (m, k), generator=generator, dtype=torch.uint8)
            weight = torch.randint(-128, 128, (n, k), generator=generator, dtype=torch.int8)
            by_row = (number + activation) % 2 == 0
            x_scale = torch.rand((m, 1) if by_row else (), generator=generator) / 50
            zero_point = torch.randint(0, 256, x_scale.shape, generator=generator, dtype=torch.int32)
            scale = torch.rand((n,) if by_row else (), generator=generator) / 60
            bias = torch.randn(n, generator=generator) if number % 2 else None
            residual = torch.randn(m, n, generator=generator) if by_row else None
            left = (x, x_scale, zero_point, weight, scale, bias, residual, ACTIVATIONS[activation])
            y = linear_int8(*left, None, None, 0, 0, torch.float32)
            step, middle = torch.tensor(0.07), torch.tensor(90, dtype=torch.int32)
            q = linear_int8(*left, step, middle, 3, 251, torch.uint8)
            none = torch.empty(0)
            packed = [pack(weight), scale, column_sums(weight), none if bias is None else bias]
            extra = [none if residual is None else residual, ints(90, 3, 251), step, y, q]
            yield LINEAR, [ints(m, n, k, by_row, activation), padded(x), x_scale, zero_point, *packed, *extra]


def weight_onlys(generator: torch.Generator) -> Iterator[Case]:
    """Yield linears on float activations, of weights of 8 and 4 bits with and without zero points."""
    for dtype, size in (("int8", None), ("uint8", 32), ("int4", 32), ("uint4", 16), ("int4", None)):
        for m in (1, 2, 5):
            n, k, symmetric = 71, 64, dtype == "int4"
            kind = "per-channel" if size is None else "per-group"
            axis = 0 if size is None else None
            spec = QuantSpec(dtype=dtype, granularity=kind, axis=axis, group_size=size, symmetric=symmetric)
            q = torch.randint(spec.qmin, spec.qmax + 1, (n, k), generator=generator)
            shape = (n,) if size is None else (n, k // size)
            scale = torch.rand(shape, generator=generator) / 20
            zero_point = torch.randint(-3 if spec.format.signed else 5, 9, shape, generator=generator)
            zero_point = torch.zeros_like(zero_point) if symmetric else zero_point
            x, bias = torch.randn(m, k, generator=generator), torch.randn(n, generator=generator)
            values = q.to(torch.uint8 if not spec.format.signed else torch.int8)
            stored = weight_only.pack_int4(values) if spec.format.packed else values
            y = linear_weight_only(x, stored, scale, zero_point, bias, None, "silu", dtype, size)
            shown = ints(m, n, k, 4 if spec.format.packed else 8, weight_only.group_size(spec, k))
            parts = [weight_only.pack_parameter(each, (n, k), spec) for each in (scale, zero_point.to(values.dtype))]
            yield WEIGHT_ONLY, [shown, x, weight_only.pack(values, spec), *parts, bias, y]


def embeddings(generator: torch.Generator) -> Iterator[Case]:
    """Yield look-ups in tables with one scale, and with one a row."""
    for d, by_row in ((3, True), (40, False), (21, True)):
        table = torch.randint(-128, 128, (9, d), generator=generator, dtype=torch.int8)
        scale = torch.rand((9,) if by_row else (), generator=generator)
        index = torch.randint(0, 9, (5,), generator=generator)
        y = embedding_int8(table, scale, index)
        yield EMBEDDING, [ints(5, d, by_row), table, scale, index, y]


def write(path: Path) -> int:
    """Write all cases, and return how many there are."""
    generator = torch.Generator().manual_seed(0)
    cases = [case for kind in (rows, linears, weight_onlys, embeddings) for case in kind(generator)]
    parts = [struct.pack("<i", len(cases))]
    for kind, arrays in cases:
        parts.append(struct.pack("<ii", kind, len(arrays)))
        for array in arrays:
            content = array.contiguous().numpy().tobytes()
            parts += [struct.pack("<i", len(content)), content]
    path.write_bytes(b"".join(parts))
    return len(cases)
