"""Launches of the Triton kernel of 8-bit products (device/gemm.py); the ops are in gemm.py."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from fxquant.kernels.cuda.triton_support import OPTIONS, held, interpreting, on_device_of

BYTES = (torch.int8, torch.uint8)
RESULTS = (torch.float32, torch.bfloat16, torch.float16)
# Blocks of rows, columns and depth, warps, stages of the pipeline: what is measured for a shape, at its first call.
# Few rows are bound by reading weights, so their blocks are small and deep; many by multiplying.
TILES = (
    (16, 32, 256, 4, 4),
    (16, 64, 128, 4, 5),
    (16, 128, 128, 4, 4),
    (32, 64, 128, 4, 4),
    (64, 64, 128, 4, 4),
    (64, 128, 128, 4, 4),
    (128, 64, 128, 4, 4),
    (128, 128, 64, 4, 4),
    (128, 128, 128, 8, 3),
    (128, 256, 64, 8, 3),
    (256, 128, 64, 8, 3),
)
INTERPRETED = (16, 32, 64)  # a tile of the interpreter, which only has to be right
GROUP = 8


@dataclass(frozen=True)
class Operands:
    """What is multiplied, as in `int8_gemm`."""

    x: Tensor
    x_scale: Tensor
    x_zero_point: Tensor | None
    weight: Tensor
    weight_scale: Tensor
    weight_sum: Tensor | None
    bias: Tensor | None
    residual: Tensor | None = None


@dataclass(frozen=True)
class Epilogue:
    """What follows the products, as in `int8_gemm`; `gated`: the weight holds a gate's rows and its up's."""

    activation: str
    out_scale: Tensor | None
    out_zero_point: Tensor | None
    qmin: int
    qmax: int
    dtype: torch.dtype
    gated: bool = False


def serves(operands: Operands, epilogue: Epilogue) -> bool:
    """Say whether the kernel computes this; else the reference does."""
    some = operands.x.numel() > 0 and operands.weight.numel() > 0
    return some and operands.x.dtype in BYTES and epilogue.dtype in (RESULTS if epilogue.out_scale is None else BYTES)


def launch_gemm(operands: Operands, epilogue: Epilogue) -> Tensor:
    """Return the result of the kernel, (…, N)."""
    x, weight = operands.x, operands.weight
    weight = weight if weight.stride(1) == 1 else weight.contiguous()
    m, k, n = x.numel() // x.shape[-1], x.shape[-1], weight.shape[0] // (2 if epilogue.gated else 1)
    unsigned = x.dtype is torch.uint8
    shifted = unsigned or operands.x_zero_point is not None
    assert operands.weight_sum is not None or not shifted, "a zero point needs the weight's sums"
    y = torch.empty((*x.shape[:-1], n), dtype=epilogue.dtype, device=x.device)
    residual = operands.residual
    pointers = (
        x.contiguous(),
        held(operands.x_scale),
        held(operands.x_zero_point),
        weight,
        held(operands.weight_scale),
        held(operands.weight_sum),
        held(operands.bias),
        None if residual is None else residual.expand(y.shape).contiguous(),
        y,
        epilogue.out_scale,
        epilogue.out_zero_point,
    )
    numbers = (m, n, k, weight.stride(0), float(epilogue.qmin), float(epilogue.qmax), row_class(m))
    constants = {
        "BY_ROW": operands.x_scale.ndim > 0,
        "BY_COLUMN": operands.weight_scale.ndim > 0,
        "UNSIGNED": unsigned,
        "GATED": epilogue.gated,
        "ACTIVATION": epilogue.activation,
    }
    with on_device_of(x):
        _run(m, n, k, pointers + numbers, constants)
    return y


def row_class(m: int) -> int:
    """Return the number of rows that m counts as when tiles are chosen: the next power of two, at least 16."""
    return max(16, 1 << (m - 1).bit_length())


def _run(m: int, n: int, k: int, arguments: tuple[Any, ...], constants: dict[str, Any]) -> None:
    if interpreting():
        from fxquant.kernels.cuda.device.gemm import int8_gemm_kernel  # noqa: PLC0415

        rows, columns, depth = INTERPRETED
        grid = (-(-m // rows) * -(-n // columns),)
        tile = {"BLOCK_M": rows, "BLOCK_N": columns, "BLOCK_K": depth, "GROUP": GROUP, "WHOLE": k % depth == 0}
        int8_gemm_kernel[grid](*arguments, **constants, **tile, **OPTIONS)
        return
    _tuned()[lambda tile: (-(-m // tile["BLOCK_M"]) * -(-n // tile["BLOCK_N"]),)](*arguments, **constants, **OPTIONS)


@cache
def _tuned() -> Any:
    """Return the kernel with the fastest of `TILES` for a class of shapes, measured when it is first met."""
    import triton  # noqa: PLC0415  loading it takes a quarter of a second

    from fxquant.kernels.cuda.device.gemm import int8_gemm_kernel  # noqa: PLC0415

    configs = [
        triton.Config({"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "GROUP": GROUP}, num_warps=warps, num_stages=stages)
        for m, n, k, warps, stages in TILES
    ]
    whole = triton.heuristics({"WHOLE": lambda given: given["k"] % given["BLOCK_K"] == 0})(int8_gemm_kernel)
    key = ["m_class", "n", "k", "BY_ROW", "UNSIGNED", "GATED", "ACTIVATION"]
    return triton.autotune(configs, key=key, prune_configs_by={"early_config_prune": _fitting})(whole)


def _fitting(configs: list[Any], operands: dict[str, Any], *, GATED: bool, **_: Any) -> list[Any]:  # noqa: N803
    """Return the tiles that have no more rows than there are, and room for a gate's sums beside the others."""
    return [
        config
        for config in configs
        if config.kwargs["BLOCK_M"] <= operands["m_class"]
        and (not GATED or config.kwargs["BLOCK_M"] * config.kwargs["BLOCK_N"] <= 128 * 128)
    ]
