"""`fxquant::cross_attention`: attention to keys and values that a decoder keeps for all tokens.

They are read as a cache holds them. csrc/binding_cross_attention.cpp computes it; the implementation here says what the
op means and runs anywhere.
"""

from torch import Tensor

from fxquant.kernels.cpu.attention import Marks, attend
from fxquant.kernels.library import define


def cross_attention(q: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, heads: int, scale: float) -> Tensor:
    """Return softmax(q·keyᵀ·scale + mask)·value, (B, Sq, heads·D) float32, contiguous.

    Args:
        q: (B, Sq, heads·D) or (B, Sq, heads, D) float32.
        key: (B, kv_heads, Sk, D) float32. Query head h reads key head h·kv_heads // heads.
        value: as key.
        mask: as in `attention`.
        heads: the number of query heads.
        scale: what the products of query and key are multiplied with.

    A query that sees no key gets zeros.
    """
    query = q if q.ndim == 4 else q.reshape(*q.shape[:2], heads, key.shape[3])
    y = attend(query, key.transpose(1, 2), value.transpose(1, 2), scale, Marks(mask))
    return y.flatten(2).contiguous()


def _fake(q: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, heads: int, scale: float) -> Tensor:
    return q.new_empty((*q.shape[:2], heads * key.shape[3]))


define(
    "cross_attention(Tensor q, Tensor key, Tensor value, Tensor? mask, int heads, float scale) -> Tensor",
    cross_attention,
    _fake,
)
