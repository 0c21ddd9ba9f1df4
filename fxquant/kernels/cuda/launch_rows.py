"""Launches of the Triton kernel that normalizes and quantizes rows (device/rows.py); the ops are in rows.py."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxquant import numerics
from fxquant.kernels.cuda.triton_support import OPTIONS, float8_refusal, held, on_device_of
from fxquant.kernels.qdq import dynamic_spec
from fxquant.spec import QuantSpec

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
BYTES = (torch.int8, torch.uint8, torch.float8_e4m3fn)
# Values that a program holds: it takes as many short rows as have room, and one long one up to the most there can be.
_ROOM, WIDEST = 2048, 65536
_VALUES_A_THREAD, _WARPS = 16, 32


@dataclass(frozen=True)
class Norm:
    """What rows go through before they are quantized: `kind` "none", "layer" or "rms"."""

    kind: str = "none"
    weight: Tensor | None = None
    bias: Tensor | None = None
    eps: float = 0.0


NO_NORM = Norm()


@dataclass(frozen=True)
class Static:
    """One scale () for all rows, and what bounds the integers."""

    scale: Tensor
    zero_point: Tensor
    qmin: int
    qmax: int
    dtype: torch.dtype


def row_spec(dtype: str, symmetric: bool, range: str) -> QuantSpec:
    """Return the QuantSpec of rows quantized at run time."""
    return dynamic_spec(dtype, "per-token", None, symmetric, range)


def serves(x: Tensor, dtype: torch.dtype) -> bool:
    """Say whether the kernel can quantize the rows of x to `dtype`."""
    if dtype.is_floating_point and float8_refusal(x.device) is not None:
        return False
    return x.dtype in FLOATS and dtype in BYTES and x.numel() > 0 and x.shape[-1] <= WIDEST


def launch_rows(x: Tensor, spec: QuantSpec, norm: Norm = NO_NORM, keep: bool = False) -> list[Tensor]:
    """Return the integers, scales and zero points of rows, and behind them, to be kept, the normalized rows."""
    q = torch.empty(x.shape, dtype=spec.format.torch_dtype, device=x.device)
    scale = torch.empty((*x.shape[:-1], 1), dtype=torch.float32, device=x.device)
    zero_point = torch.empty(scale.shape, dtype=torch.int32, device=x.device)
    kept = torch.empty(x.shape, dtype=x.dtype, device=x.device) if keep else None
    middle = 0 if spec.format.signed else (spec.qmax + 1) // 2
    halved = not spec.symmetric or (spec.format.signed and spec.range == "full")
    divisor = (spec.qmax - spec.qmin) / 2 if halved else spec.qmax - middle
    bounds = (float(divisor), float(middle), float(spec.qmin), float(spec.qmax))
    _launch(x, norm, (kept, q, scale, zero_point), bounds, STATIC=False, SYMMETRIC=spec.symmetric)
    return [q, scale, zero_point, *([kept] if kept is not None else [])]


def launch_static(x: Tensor, static: Static, norm: Norm = NO_NORM, keep: bool = False) -> list[Tensor]:
    """Return the integers of x by one scale, and behind them, to be kept, the normalized rows."""
    q = torch.empty(x.shape, dtype=static.dtype, device=x.device)
    kept = torch.empty(x.shape, dtype=x.dtype, device=x.device) if keep else None
    bounds = (1.0, 0.0, float(static.qmin), float(static.qmax))
    _launch(x, norm, (kept, q, static.scale, static.zero_point), bounds, STATIC=True, SYMMETRIC=False)
    return [q, *([kept] if kept is not None else [])]


def _launch(
    x: Tensor,
    norm: Norm,
    written: tuple[Tensor | None, ...],
    bounds: tuple[float, ...],
    **constants: Any,
) -> None:
    from fxquant.kernels.cuda.device.rows import rows_kernel  # noqa: PLC0415

    width = x.shape[-1]
    rows = x.numel() // width
    columns = 1 << (width - 1).bit_length()
    together = max(1, _ROOM // columns)
    warps = min(_WARPS, max(1, together * columns // (32 * _VALUES_A_THREAD)))
    with on_device_of(x):
        rows_kernel[(-(-rows // together),)](
            x.contiguous(),
            held(norm.weight),
            held(norm.bias),
            *written,
            rows,
            width,
            norm.eps,
            *bounds,
            numerics.SMALLEST_SCALE,
            NORM=norm.kind,
            ROWS=together,
            COLUMNS=columns,
            num_warps=warps,
            **constants,
            **OPTIONS,
        )
