"""`fxquant::fp8_gemm`: linears of float8 activations and weights, computed in the way that is fastest on the GPU."""

from typing import Any

from torch import Tensor

from fxquant.kernels.cuda.choice import Question, run_fastest
from fxquant.kernels.cuda.launch_fp8 import Product, candidates, serves
from fxquant.kernels.cuda.launch_gemm import row_class
from fxquant.kernels.cuda.triton_support import define_with_triton, float8_refusal
from fxquant.kernels.reference.epilogue import ACTIVATIONS
from fxquant.kernels.reference.fp8 import SCHEMA, fake_linear_fp8, linear_fp8


def _triton(*arguments: Any) -> Tensor:
    product = Product(*arguments)
    x, activation = product.x, product.activation
    ACTIVATIONS[activation]  # raises for an unknown one
    if not serves(product) or float8_refusal(x.device) is not None:
        return linear_fp8(*arguments)
    m, n, k = product.sizes
    kinds = (str(product.dtype), activation, str(product.residual is not None))
    question = Question("fp8_gemm", (row_class(m), n, k, *kinds))
    found: Tensor = run_fastest(question, x, candidates(product))
    return found


define_with_triton(f"fp8_gemm{SCHEMA}", linear_fp8, _triton, fake_linear_fp8)
