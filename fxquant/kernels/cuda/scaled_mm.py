"""Products of 8-bit matrices by torch's own libraries: `torch._int_mm`, and `torch._scaled_mm` for float8.

Both refuse most shapes, so operands are filled up with zeros here. What follows the integer sums is our own kernel, so
that a result does not depend on who multiplied.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fxquant.kernels.cuda.launch_gemm import Epilogue, Operands
from fxquant.kernels.cuda.triton_support import OPTIONS, held, on_device_of

LEAST_ROWS = 17  # of torch._int_mm
MULTIPLE = {torch.int8: 8, torch.float8_e4m3fn: 16}  # of columns and depth
BLOCK = (16, 128)  # rows and columns that a program finishes


@dataclass(frozen=True)
class Requantized:
    """The scale () and zero point () of integer results, and their bounds; none of float ones."""

    scale: Tensor | None = None
    zero_point: Tensor | None = None
    qmin: int = 0
    qmax: int = 0


FLOAT = Requantized()


def filled(x: Tensor, rows: int, columns: int) -> Tensor:
    """Return a matrix with zeros below and behind it, up to so many rows and columns."""
    below, behind = rows - x.shape[0], columns - x.shape[1]
    if not below and not behind:
        return x
    # Bytes, as float8 numbers cannot be padded; zero is zero bits.
    bits = x.view(torch.uint8) if x.dtype is torch.float8_e4m3fn else x
    return functional.pad(bits, (0, behind, 0, below)).view(x.dtype)


def up_to(size: int, multiple: int) -> int:
    """Return the least multiple that is not below a size."""
    return -(-size // multiple) * multiple


def int_mm(x: Tensor, weight: Tensor) -> Tensor:
    """Return x·weightᵀ as int32, (at least M, at least N), for x (M, K) and weight (N, at least K), both int8."""
    step = MULTIPLE[torch.int8]
    depth, columns = up_to(weight.shape[1], step), up_to(weight.shape[0], step)
    tall = filled(x, max(x.shape[0], LEAST_ROWS), depth)
    return torch._int_mm(tall, filled(weight, columns, depth).t())


def gemm_by_int_mm(operands: Operands, epilogue: Epilogue) -> Tensor:
    """Return what `launch_gemm` does, with the product by torch; there is no gate."""
    x, weight = operands.x, operands.weight
    rows = x.reshape(-1, x.shape[-1])
    unsigned = x.dtype is torch.uint8
    # 128 less: the highest bit turns.
    sums = int_mm((rows ^ 128).view(torch.int8) if unsigned else rows, weight)
    y = torch.empty((*x.shape[:-1], weight.shape[0]), dtype=epilogue.dtype, device=x.device)
    scales = (operands.x_scale, operands.x_zero_point, operands.weight_scale, operands.weight_sum)
    out = Requantized(epilogue.out_scale, epilogue.out_zero_point, epilogue.qmin, epilogue.qmax)
    finish_sums(sums, scales, (operands.bias, operands.residual), y, epilogue.activation, out, unsigned)
    return y


def finish_sums(
    sums: Tensor,
    scales: tuple[Tensor, Tensor | None, Tensor, Tensor | None],
    added: tuple[Tensor | None, Tensor | None],
    y: Tensor,
    activation: str,
    out: Requantized = FLOAT,
    unsigned: bool = False,
) -> None:
    """Write activation(S_x·S_w·(sums − Z·Σ w) + bias) + residual to y (…, N), requantized or not.

    Args:
        sums: int32 or float32, at least as many rows and columns as y has.
        scales: S_x () or (…, 1), Z like it or None, S_w () or (N,), and Σ w (N,) or None.
        added: the bias (N,) and the residual, which broadcasts to y; or None.
        y: what is written.
        activation: the name of a function.
        out: the scale of integers y.
        unsigned: whether x was multiplied 128 less.
    """
    from fxquant.kernels.cuda.device.sums import finish_sums_kernel  # noqa: PLC0415  needs Triton

    n = y.shape[-1]
    m = y.numel() // n
    bias, residual = added
    whole = None if residual is None else residual.expand(y.shape).contiguous()
    tensors = (sums, *map(held, scales), held(bias), whole, y, out.scale, out.zero_point)
    numbers = (m, n, sums.stride(0), float(out.qmin), float(out.qmax))
    constants: dict[str, Any] = {
        "BY_ROW": scales[0].ndim > 0,
        "BY_COLUMN": scales[2].ndim > 0,
        "UNSIGNED": unsigned,
        "ACTIVATION": activation,
        "BLOCK_M": BLOCK[0],
        "BLOCK_N": BLOCK[1],
    }
    with on_device_of(y):
        grid = (-(-m // BLOCK[0]), -(-n // BLOCK[1]))
        finish_sums_kernel[grid](*tensors, *numbers, **constants, **OPTIONS)
