"""Linear layers with float activations and weights of 8 or 4 bits, in groups or not: reference meaning.

y = x·(S·(q − Z))ᵀ + b, with S and Z of the weight's tensor, of its row, or of its row's group of columns.
"""

import torch
from torch import Tensor
from torch.nn import functional

from fxquant.kernels.int4 import unpack_int4
from fxquant.kernels.library import define
from fxquant.kernels.reference.epilogue import finish
from fxquant.numerics import dequantize
from fxquant.spec import FORMATS, QParams


def linear_weight_only(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    weight_zero_point: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    dtype: str,
    group_size: int | None,
) -> Tensor:
    """Return activation(x·(S·(q − Z))ᵀ + bias) + residual, (…, N) float32, for float `x` (…, K).

    - `weight` is (N, K), of a `dtype` of FORMATS; 4-bit ones are bytes (N, ⌈K/2⌉), two values in each (int4.py).
    - `weight_scale` is float32, () or (N,), or with a `group_size` (N, ⌈K/group_size⌉).
    - `weight_zero_point`, of any integer dtype, has the shape of the scale or is ().
    - `bias` is (N,) float32; `residual` is float32 and broadcasts to the output.
    """
    form = FORMATS[dtype]
    integers = unpack_int4(weight, x.shape[-1], form.signed) if form.packed else weight
    axis = 0 if group_size is None and weight_scale.ndim else None
    wide = dequantize(integers, QParams(weight_scale, weight_zero_point, axis, group_size))
    return finish(functional.linear(x.float(), wide, bias), activation, residual)


def _fake(x: Tensor, weight: Tensor, *_: object) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]), dtype=torch.float32)


define(
    "linear_weight_only(Tensor x, Tensor weight, Tensor weight_scale, Tensor weight_zero_point, Tensor? bias, "
    "Tensor? residual, str activation, str dtype, int? group_size) -> Tensor",
    linear_weight_only,
    _fake,
)
