"""Exact integer matrix multiplication of 8-bit operands on any CPU, in plain PyTorch.

float32 holds every integer up to 2^24, so a float32 GEMM over few enough products is exact whatever its order of
summation; longer ones are cut into blocks whose int32 results are added. No instruction that saturates is involved.
"""

import torch
from torch import Tensor

_LARGEST = {torch.int8: 128, torch.uint8: 255}


def integer_matmul(a: Tensor, b: Tensor) -> Tensor:
    """Return the matrix product a·b as int32, exactly.

    Shapes: a (…, M, K) and b (…, K, N), int8 or uint8, give (…, M, N); batch dimensions broadcast, a vector (K,) for a
    gives (…, N), and any size may be zero. Beyond int32 the sums wrap around, as in hardware;
    K ≤ 2^31 / (255·255) = 33025 is always inside.
    """
    block = 2**24 // (_LARGEST[a.dtype] * _LARGEST[b.dtype])
    depth = a.shape[-1]
    total = torch.matmul(a[..., :block].float(), b[..., :block, :].float()).to(torch.int32)
    for start in range(block, depth, block):
        part = torch.matmul(a[..., start : start + block].float(), b[..., start : start + block, :].float())
        total += part.to(torch.int32)
    return total
