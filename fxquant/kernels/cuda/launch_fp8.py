"""Ways to compute `fxquant::fp8_gemm` (fp8.py): our Triton kernel (device/fp8.py), and `torch._scaled_mm`."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fxquant.kernels.cuda.launch_gemm import GROUP, row_class
from fxquant.kernels.cuda.scaled_mm import MULTIPLE, filled, finish_sums, up_to
from fxquant.kernels.cuda.triton_support import OPTIONS, held, interpreting, on_device_of

FLOAT8 = torch.float8_e4m3fn
RESULTS = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Product:
    """What is computed, as in `linear_fp8`."""

    x: Tensor
    x_scale: Tensor
    weight: Tensor
    weight_scale: Tensor
    bias: Tensor | None
    residual: Tensor | None
    activation: str
    dtype: torch.dtype

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Rows and columns of the result, and the depth."""
        return self.x.numel() // self.x.shape[-1], self.weight.shape[0], self.x.shape[-1]

    @property
    def plain(self) -> bool:
        """Whether nothing but a bias follows, and the result is bfloat16."""
        return self.activation == "none" and self.residual is None and self.dtype is torch.bfloat16


def serves(product: Product) -> bool:
    """Say whether the kernels compute this; else the reference does."""
    float8 = product.x.dtype is FLOAT8 and product.weight.dtype is FLOAT8
    return float8 and product.x.numel() > 0 and product.weight.numel() > 0 and product.dtype in RESULTS


def candidates(product: Product) -> dict[str, Callable[[], Tensor]]:
    """Return the ways to compute a product; only a plain one is rounded to bfloat16 before its bias is added."""
    ways = {"triton": lambda: by_triton(product), "scaled_mm": lambda: by_scaled_mm(product)}
    return ways | ({"scaled_mm_rowwise": lambda: by_scaled_mm_rowwise(product)} if product.plain else {})


def by_triton(product: Product) -> Tensor:
    """Return the product by our own kernel."""
    from fxquant.kernels.cuda.device.fp8 import fp8_gemm_kernel  # noqa: PLC0415  needs Triton

    x, weight = product.x.contiguous(), product.weight.contiguous()
    m, n, k = product.sizes
    y = torch.empty((*x.shape[:-1], n), dtype=product.dtype, device=x.device)
    rows, columns, deep = min(row_class(m), 128), 128 if m > 16 else 64, 128
    if interpreting():
        rows, columns, deep = 16, 32, 64
    residual = None if product.residual is None else product.residual.expand(y.shape).contiguous()
    constants = {
        "BY_ROW": product.x_scale.ndim > 0,
        "BY_COLUMN": product.weight_scale.ndim > 0,
        "ACTIVATION": product.activation,
        "WHOLE": k % deep == 0,
        "FLOAT8": not interpreting(),
    }
    blocks = {"BLOCK_M": rows, "BLOCK_N": columns, "BLOCK_K": deep, "GROUP": GROUP}
    scales, bias = (held(product.x_scale), held(product.weight_scale)), held(product.bias)
    tensors = (x, scales[0], weight, scales[1], bias, residual, y)
    with on_device_of(x):
        fp8_gemm_kernel[(-(-m // rows) * -(-n // columns),)](
            *tensors, m, n, k, **constants, **blocks, num_warps=8 if rows == 128 else 4, num_stages=4, **OPTIONS
        )
    return y


def by_scaled_mm(product: Product) -> Tensor:
    """Return the product with float32 sums by torch, and our own kernel behind them."""
    x, weight = _filled(product)
    one = torch.ones((), device=x.device)
    sums = torch._scaled_mm(x, weight.t(), one, one, out_dtype=torch.float32)
    y = torch.empty((*product.x.shape[:-1], product.sizes[1]), dtype=product.dtype, device=x.device)
    scales = (product.x_scale, None, product.weight_scale, None)
    finish_sums(sums, scales, (product.bias, product.residual), y, product.activation)
    return y


def by_scaled_mm_rowwise(product: Product) -> Tensor:
    """Return a plain product by torch alone, which takes a scale for each row and column."""
    x, weight = _filled(product)
    m, n, _ = product.sizes
    # Copied, as torch wants a stride of 1 along an axis of one place, too.
    rows = torch.empty((m, 1), device=x.device).copy_(product.x_scale.expand(*product.x.shape[:-1], 1).reshape(m, 1))
    columns = filled(product.weight_scale.expand(n).reshape(1, n), 1, len(weight))
    y = torch._scaled_mm(x, weight.t(), rows, columns.contiguous(), out_dtype=product.dtype)
    y = y[:, :n].reshape(*product.x.shape[:-1], n)
    return y if product.bias is None else y + product.bias.to(y.dtype)


def _filled(product: Product) -> tuple[Tensor, Tensor]:
    """Return x (M, K) and the weight (N, K) with N and K filled up to what torch takes."""
    m, n, k = product.sizes
    step = MULTIPLE[FLOAT8]
    depth = up_to(k, step)
    return filled(product.x.reshape(m, k), m, depth), filled(product.weight, up_to(n, step), depth)
