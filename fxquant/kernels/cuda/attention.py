"""`fxquant::attention` on a GPU: bfloat16 products, float32 softmax and sums.

Torch's own kernels run what they are fast at, a batch without padding and general masks. Padded keys, and packed
sequences of different lengths, go to a kernel of our own: torch's would want a mask (B, H, S, S), which takes them off
their fast path, or the greatest length, which would have to come from the device first.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fxquant.kernels.cpu.attention import apart
from fxquant.kernels.cpu.attention import attention as reference
from fxquant.kernels.cuda.triton_support import OPTIONS, held, interpreting, on_device_of, refusal
from fxquant.kernels.library import implement

_MOST_FEATURES = 256
_NARROW = 64  # features up to which blocks of 128 queries keep their sums in registers


def attention(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    mask: Tensor | None,
    offsets: Tensor | None,
    heads: int,
    kv_heads: int,
    scale: float,
    causal: bool,
    diagonal: int = 0,
    window: int | None = None,
    places: Tensor | None = None,
) -> Tensor:
    """Return what `fxquant::attention` means, (B, Sq, heads·D) float32, with operands rounded to bfloat16."""
    query, key, value = apart(q, k, v, heads, kv_heads)
    padded = mask is not None and mask.ndim == 2
    windowed = diagonal != 0 or window is not None  # which no pass asks of a GPU
    none = query.shape[3] > _MOST_FEATURES or query.numel() == 0 or key.numel() == 0
    if windowed or none or refusal(q.device) is not None:
        return reference(q, k, v, mask, offsets, heads, kv_heads, scale, causal, diagonal, window, places)
    if padded or offsets is not None:
        return own(query, key, value, mask, offsets, scale, causal)
    return torchs(query, key, value, mask, scale, causal)


def torchs(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, causal: bool) -> Tensor:
    """Return attention (B, Sq, heads·D) float32 by torch; a mask broadcasts to (B, heads, Sq, Sk)."""
    q, k, v = (each.to(torch.bfloat16).transpose(1, 2) for each in (query, key, value))
    if mask is not None and causal:
        mask, causal = _with_causality(mask, q.shape[2], k.shape[2]), False
    if mask is not None and mask.dtype is not torch.bool:
        # A bfloat16 mask would round biases; what hides keys is exact in it.
        mask = mask.to(torch.bfloat16)
    grouped = q.shape[1] != k.shape[1]
    y = functional.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale, enable_gqa=grouped)
    if mask is not None:
        seen = mask if mask.dtype is torch.bool else mask != -torch.inf
        y = torch.where(seen.any(-1, keepdim=True), y, 0.0)
    return y.transpose(1, 2).flatten(2).to(torch.float32, memory_format=torch.contiguous_format)


def _with_causality(mask: Tensor, queries: int, keys: int) -> Tensor:
    seen = torch.ones((queries, keys), dtype=torch.bool, device=mask.device).tril()
    return mask & seen if mask.dtype is torch.bool else mask.masked_fill(~seen, -torch.inf)


def own(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, offsets: Tensor | None, scale: float, causal: bool
) -> Tensor:
    """Return attention (B, Sq, heads·D) float32 by the Triton kernel, of query, key and value (B, S, heads, D).

    `mask` is bool (B or 1, Sk), true where a key takes part; `offsets` (n + 1,) are those of `fxquant::attention`.
    """
    from fxquant.kernels.cuda.device.attention import attention_kernel  # noqa: PLC0415

    batch, queries, heads, features = query.shape
    keys, kv_heads = key.shape[1:3]
    query, key, value = (each if each.stride(3) == 1 else each.contiguous() for each in (query, key, value))
    y = torch.empty((batch, queries, heads * features), dtype=torch.float32, device=query.device)
    sequences = 1 if offsets is None else offsets.shape[0] - 1
    rows = 128 if features <= _NARROW and queries > 64 else 64
    blocks = -(-queries // rows) + (0 if offsets is None else sequences)
    strides = [stride for each in (query, key, value) for stride in each.stride()[:3]]
    room = max(16, 1 << (features - 1).bit_length())
    with on_device_of(query):
        # The first axis of a grid alone may have more than 65535 places.
        attention_kernel[(blocks * batch, heads)](
            query, key, value,
            None if mask is None else mask.expand(batch, keys).contiguous().view(torch.uint8),
            held(offsets), y,
            queries, keys, sequences, heads, heads // kv_heads, features, scale, *strides,
            FACTOR=factor_type(), CAUSAL=causal, SEQUENCES=1 << (sequences - 1).bit_length(), FEATURES=room,
            BLOCK_M=rows, BLOCK_N=64,
            num_warps=8 if rows == 128 else 4, num_stages=2,
            **OPTIONS,
        )  # fmt: skip
    return y


def factor_type() -> Any:
    """Return the type that holds bfloat16 numbers in a product: the interpreter multiplies those of float32 alone."""
    from triton import language as tl  # noqa: PLC0415

    return tl.float32 if interpreting() else tl.bfloat16


implement("attention", attention, "CUDA")
