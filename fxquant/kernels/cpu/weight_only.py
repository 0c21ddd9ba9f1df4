"""Weights of 8 or 4 bits under float activations: `fxquant::packed_linear_weight_only`, run by our C++ kernels.

A weight is packed once, on lowering, in blocks of 64 columns; its values are signed, and zero beyond N or K:

- 8 bits: int8 [⌈N/64⌉, G, 4·⌈group_size/4⌉, 64]; element (b, g, d, c) is weight[64·b + c, group_size·g + d].
- 4 bits: uint8 [⌈N/64⌉, G, ⌈group_size/8⌉, 64, 4]; the low half of byte (b, g, d, c, i) is
  weight[64·b + c, group_size·g + 8·d + i], the high half the one of depth 4 more.

A group is filled up with zeros, and the last one may have fewer values.
Scales, and zero points where there are any, are [⌈N/64⌉, G, 64]. One scale a column is one group of all K depths.
The implementation here unpacks and multiplies by torch; native.py puts the C++ one before it.
"""

import torch
from torch import Tensor
from torch.nn import functional

from fxquant.kernels.int4 import pack_int4, unpack_int4
from fxquant.kernels.layout import LAYOUTS
from fxquant.kernels.library import define
from fxquant.kernels.reference.epilogue import finish
from fxquant.numerics import as_groups, dequantize
from fxquant.spec import QParams, QuantSpec

LAYOUT = "columns"
COLUMNS = 64


def group_size(spec: QuantSpec, depth: int) -> int:
    """Return how many of the `depth` weights of a row share a scale."""
    return max(min(spec.group_size or depth, depth), 1)


def pack(integers: Tensor, spec: QuantSpec) -> Tensor:
    """Return the weight `integers` (N, K), one value an element, in blocks of columns."""
    size, step = group_size(spec, integers.shape[1]), 8 if spec.format.packed else 4
    groups = functional.pad(as_groups(_signed(integers, spec), size), (0, -size % step))
    if not spec.format.packed:
        return _by_columns(groups)
    halves = groups.reshape(*groups.shape[:2], -(-size // step), 2, 4)
    words = pack_int4(halves.transpose(-1, -2).flatten(-2))
    return _by_columns(words).movedim(-1, -2).contiguous()


def pack_parameter(value: Tensor, shape: tuple[int, ...], spec: QuantSpec) -> Tensor:
    """Return the scale or zero point of a weight of `shape` (N, K), per tensor, channel or group, by columns."""
    n, k = shape
    groups = -(-k // group_size(spec, k))
    parameter = value if value.is_floating_point() else _signed(value, spec)
    return _by_columns(parameter.reshape(*value.shape, *(1,) * (2 - value.ndim)).expand(n, groups))


def layout_arguments(spec: QuantSpec, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return what `_plain` has to know of a weight of `shape` (N, K)."""
    return shape[1], group_size(spec, shape[1]), _middle(spec)


@LAYOUTS.register(LAYOUT)
def _plain(packed: Tensor, like: Tensor, depth: int, group: int, middle: int) -> Tensor:
    """Return the weight that `pack` took, as Q/DQ graphs store it: two values a byte where they have 4 bits."""
    codes = unpack(packed, len(like), depth, group)
    values = (codes.to(torch.int16) + middle).to(torch.uint8 if middle else torch.int8)
    return pack_int4(values) if packed.dtype is torch.uint8 else values


def _signed(integers: Tensor, spec: QuantSpec) -> Tensor:
    """Return integers, or their zero point, as int8 around 0: 8 or 128 less where the format has no sign."""
    return (integers.to(torch.int16) - _middle(spec)).to(torch.int8)


def _middle(spec: QuantSpec) -> int:
    return 0 if spec.format.signed else (spec.format.maximum + 1) // 2


def _by_columns(rows: Tensor) -> Tensor:
    """Return (N, …) as [⌈N/64⌉, …, 64]."""
    padded = functional.pad(rows, (0, 0) * (rows.ndim - 1) + (0, -rows.shape[0] % COLUMNS))
    return padded.reshape(padded.shape[0] // COLUMNS, COLUMNS, *rows.shape[1:]).movedim(1, -1).contiguous()


def unpack(packed: Tensor, columns: int, depth: int, group_size: int) -> Tensor:
    """Return the codes (columns, depth) of a packed weight, int8."""
    if packed.dtype is torch.uint8:
        pairs = unpack_int4(_rows(packed.movedim(-2, -1), columns), 8, True)
        groups = pairs.reshape(*pairs.shape[:-1], 4, 2).transpose(-1, -2).flatten(-3)
    else:
        groups = _rows(packed, columns)
    return groups[..., :group_size].flatten(1)[:, :depth].contiguous()


def _rows(blocks: Tensor, columns: int) -> Tensor:
    """Return what `_by_columns` took."""
    return blocks.movedim(-1, 1).flatten(0, 1)[:columns].contiguous()


def packed_linear_weight_only(
    x: Tensor,
    packed: Tensor,
    weight_scale: Tensor,
    weight_zero_point: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    columns: int,
    group_size: int,
    activated: int | None = None,
) -> Tensor:
    """Return activation(x·(S·(q − Z))ᵀ + bias) + residual, (…, N) float32, for x (…, K); N is `columns`.

    Where `activated` is given, the first so many columns, a multiple of 64, have the activation, and the others none.
    """
    codes = unpack(packed, columns, x.shape[-1], group_size)
    scale = _rows(weight_scale, columns)
    zero_point = torch.tensor(0) if weight_zero_point is None else _rows(weight_zero_point, columns)
    qparams = QParams(scale, zero_point, None, group_size)
    y = functional.linear(x.float(), dequantize(codes, qparams), bias)
    if activated is not None:
        y = torch.cat((finish(y[..., :activated], activation, None), y[..., activated:]), dim=-1)
    return finish(y, activation if activated is None else "none", residual)


def _fake_packed(
    x: Tensor,
    packed: Tensor,
    weight_scale: Tensor,
    weight_zero_point: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    columns: int,
    group_size: int,
    activated: int | None = None,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], columns), dtype=torch.float32)


define(
    "packed_linear_weight_only(Tensor x, Tensor packed, Tensor weight_scale, Tensor? weight_zero_point, "
    "Tensor? bias, Tensor? residual, str activation, int columns, int group_size, "
    "int? activated=None) -> Tensor",
    packed_linear_weight_only,
    _fake_packed,
)
