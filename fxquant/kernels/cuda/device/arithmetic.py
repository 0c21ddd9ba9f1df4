# mypy: ignore-errors
"""What kernels compute element by element: activation functions, rounding, quantization.

Division is rounded to nearest and sums are not reordered, so integers are equal to the reference's to the bit.
"""

import triton
import triton.language as tl

# Adding it rounds a float32 below 2²² to a whole number, ties to even: its last place is 1.
ROUNDS = tl.constexpr(12582912.0)
_NINTHS = tl.constexpr(24576.0)  # the same for multiples of 2⁻⁹
_HALF_ROOT = tl.constexpr(0.7071067811865476)  # √½
_TANH_INNER = tl.constexpr(0.7978845608028654)  # √(2/π)
_TANH_CUBE = tl.constexpr(0.044715)


@triton.jit
def activate(y, ACTIVATION: tl.constexpr):
    """Return the activation function called ACTIVATION of float32 y."""
    if ACTIVATION == "relu":
        # A comparison keeps NaN, a maximum would not.
        y = tl.where(y < 0.0, 0.0, y)
    elif ACTIVATION == "gelu":
        y = 0.5 * y * (1.0 + tl.math.erf(y * _HALF_ROOT))
    elif ACTIVATION == "gelu_tanh":
        # (1 + tanh u)/2 = 1/(1 + e^−2u), which needs no tanh.
        inner = _TANH_INNER * (y + _TANH_CUBE * y * y * y)
        y = y / (1.0 + tl.exp(-2.0 * inner))
    elif ACTIVATION == "silu":
        y = y / (1.0 + tl.exp(-y))
    return y


@triton.jit
def to_integers(x, scale, zero_point, qmin, qmax):
    """Return clamp(round(x/scale) + zero_point, qmin, qmax) as int32, and 0 where x/scale is NaN; all are float32."""
    ratio = tl.math.div_rn(x, scale)
    # The bounds are whole, so clamping first is the same, and keeps the sum with ROUNDS exact.
    inside = tl.minimum(tl.maximum(ratio, qmin - zero_point), qmax - zero_point)
    whole = (inside + ROUNDS) - ROUNDS
    return tl.where(ratio != ratio, 0.0, whole + zero_point).to(tl.int32)


@triton.jit
def to_float8(x):
    """Return float32 x, at most 448, as float8 e4m3: rounded to nearest, ties to even, in float32 already.

    So it does not hang on a conversion's way of rounding. NaN stays NaN.
    """
    bits = x.to(tl.int32, bitcast=True)
    # Numbers of the format keep three bits of the mantissa; below 2⁻⁶ all are multiples of 2⁻⁹.
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000).to(tl.float32, bitcast=True)
    small = (x + _NINTHS) - _NINTHS
    rounded = tl.where(tl.abs(x) < 0.015625, small, normal)
    return tl.where(x != x, x, rounded).to(tl.float8e4nv)


@triton.jit
def to_format(x, scale, zero_point, qmin, qmax, dtype: tl.constexpr):
    """Return x quantized to `dtype`, integers as `to_integers` gives them or float8, which keeps NaN."""
    if dtype == tl.float8e4nv:
        ratio = tl.math.div_rn(x, scale)
        q = to_float8(tl.where(ratio > qmax, qmax, tl.where(ratio < qmin, qmin, ratio)))
    else:
        q = to_integers(x, scale, zero_point, qmin, qmax).to(dtype)
    return q


@triton.jit
def row_qparams(low, high, divisor, middle, qmin, qmax, smallest, SYMMETRIC: tl.constexpr):
    """Return the scale and zero point, float32, that cover [low, high] and zero; as `numerics.qparams_from_range`."""
    divisors = tl.zeros_like(low) + divisor
    if SYMMETRIC:
        scale = tl.math.div_rn(tl.where(low != low, low, tl.maximum(-low, high)), divisors)
        zero_point = tl.zeros_like(low) + middle
    else:
        scale = tl.math.div_rn(high * 0.5 - low * 0.5, divisors)
        first = qmin - tl.math.div_rn(low, tl.maximum(scale, smallest))
        inside = tl.minimum(tl.maximum((first + ROUNDS) - ROUNDS, qmin), qmax)
        zero_point = tl.where((first != first) | (scale != scale), 0.0, inside)
    positive = tl.where(scale == 0.0, 1.0, tl.maximum(scale, smallest))
    return tl.where(scale != scale, scale, positive), zero_point
