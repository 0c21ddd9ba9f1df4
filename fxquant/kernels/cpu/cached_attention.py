"""`fxquant::cached_attention`: attention whose keys and values go behind those of a cache.

The op computes a function: it returns a longer cache and leaves the one that it is given as it is. The C++ kernel does
so without copying where it can: a cache lies in memory with room behind it, and the result shows more of that memory
(csrc/binding_growing.h). The implementation here says what the op means and runs anywhere.
"""

import torch
from torch import Tensor
from torch.nn import functional

from fxquant.kernels.cpu.attention import Marks, apart, attend
from fxquant.kernels.cpu.rotary import rotary
from fxquant.kernels.library import define

Result = tuple[Tensor, Tensor, Tensor]


def cached_attention(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    past_key: Tensor,
    past_value: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    heads: int,
    kv_heads: int,
    scale: float,
    cap: float | None,
    diagonal: int | None,
    window: int | None,
    eps: float,
    interleaved: bool,
    groups: int = 1,
) -> Result:
    """Return softmax(cap(q·keyᵀ·scale) + mask + bias)·value, (B, S, heads·D), and the longer cache.

    That is key and value, (B, kv_heads, past + S, D).

    Args:
        q: (B, S, heads·D) or (B, S, heads, D) float32; without k and v merged, (B, S, (heads + 2·kv_heads)·D): queries,
            then keys, then values.
        k: (B, S, kv_heads·D) or (B, S, kv_heads, D). Query head h reads key head h·kv_heads // heads.
        v: as k.
        past_key: (B, kv_heads, past, D) float32; key is these and, behind them, k.
        past_value: as past_key, for value.
        mask: bool, of at least B rows and past + S columns, of which the first are read: true where a key takes part;
            or bool or float32 of four dimensions, as in `attention`.
        bias: float32 that broadcasts to (B, heads, S, past + S), beside a mask of bool; or None.
        q_norm: float32 (D,), the weights of an RMS norm of each query head, which comes first; or None.
        k_norm: the same for keys.
        cos: float32 factors by which q and k are then turned (`rotary`), or None.
        sin: as cos.
        heads: the number of query heads.
        kv_heads: the number of key and value heads.
        scale: what the products of query and key are multiplied with.
        cap: scores s become cap·tanh(s / cap) before anything is added; None: they stay.
        diagonal: query i sees keys j ≤ i + diagonal; None: all.
        window: and of these j > i + diagonal − window alone; None: all.
        eps: what the norms add to the mean of the squares.
        interleaved: which features are turned together.
        groups: merged heads lie in so many groups of queries, keys and values: 1, or kv_heads, which is heads then.

    A query that sees no key gets zeros.
    """
    if groups > 1:
        q, k, v = q.reshape(*q.shape[:2], groups, 3, -1).unbind(3)
    q, k, v = (each.transpose(1, 2) for each in apart(q, k, v, heads, kv_heads))
    q, k = (_normalized(x, weight, eps) for x, weight in ((q, q_norm), (k, k_norm)))
    if cos is not None and sin is not None:
        q, k = rotary(q, cos, sin, interleaved), rotary(k, cos, sin, interleaved)
    key, value = torch.cat((past_key, k), 2), torch.cat((past_value, v), 2)
    if mask is not None and mask.ndim == 2:
        mask = mask[: q.shape[0], : key.shape[2]]
    marks = Marks(mask, bias, diagonal, window, cap)
    y = attend(q.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), scale, marks)
    return y.flatten(2).contiguous(), key, value


def _normalized(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    return x if weight is None else functional.rms_norm(x, x.shape[-1:], weight, eps)


def _fake(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    past_key: Tensor,
    past_value: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    heads: int,
    kv_heads: int,
    scale: float,
    cap: float | None,
    diagonal: int | None,
    window: int | None,
    eps: float,
    interleaved: bool,
    groups: int = 1,
) -> Result:
    batch, held, past, features = past_key.shape
    # Positions come first in memory, so that there can be more of them without other strides.
    shape = (past + q.shape[1], batch, held, features)
    cache = [past_key.new_empty(shape).permute(1, 2, 0, 3) for _ in range(2)]
    return past_key.new_empty((batch, q.shape[1], heads * features)), cache[0], cache[1]


define(
    "cached_attention(Tensor q, Tensor? k, Tensor? v, Tensor past_key, Tensor past_value, Tensor? mask, Tensor? bias, "
    "Tensor? q_norm, Tensor? k_norm, Tensor? cos, Tensor? sin, int heads, int kv_heads, float scale, float? cap, "
    "SymInt? diagonal, int? window, float eps, bool interleaved, int groups=1) -> (Tensor, Tensor, Tensor)",
    cached_attention,
    _fake,
)
