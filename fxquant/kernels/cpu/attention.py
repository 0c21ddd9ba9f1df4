"""`fxquant::attention`: softmax(q·kᵀ·scale + mask)·v in float32, read and written as the linears around it do.

Query, key and value keep their places in memory: no transposes, also where they are column ranges of one tensor.
csrc/attention.h computes it; the implementation here says what it means and runs anywhere.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fxquant.kernels.library import define


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
    """Return softmax(q·kᵀ·scale + mask)·v, (B, Sq, heads·D) float32, contiguous.

    Args:
        q: (B, Sq, heads·D) or (B, Sq, heads, D); without k and v merged, (B, S, (heads + 2·kv_heads)·D), the columns of
            query, key and value in that order. Float32, or bfloat16 where key and value are.
        k: (B, Sk, kv_heads·D) or (B, Sk, kv_heads, D). Query head h reads key head h·kv_heads // heads.
        v: as k.
        mask: bool (B, Sk), true where a key takes part; or, broadcast to (B, heads, Sq, Sk), bool (true: takes part)
            or float32, added to the scores.
        offsets: integers (n + 1,), rising from 0 to S: then B is 1, tokens offsets[i]:offsets[i + 1] are a sequence of
            their own, and there is no mask.
        heads: the number of query heads.
        kv_heads: the number of key and value heads.
        scale: what the products of query and key are multiplied with.
        causal: query i sees keys j ≤ i + diagonal of its sequence; else all.
        diagonal: 0 but where the order is causal.
        window: and of these j > i + diagonal − window alone; None: all.
        places: (S,) integers, with offsets: where each token lies in its sequence, counted from any start, for which i
            and j then stand. None: one behind the other.

    A query that sees no key gets zeros.
    """
    q, k, v = apart(q, k, v, heads, kv_heads)
    marks = Marks(mask, diagonal=diagonal if causal else None, window=window)
    if offsets is None:
        return attend(q, k, v, scale, marks).flatten(2).contiguous()
    every = torch.arange(q.shape[1], device=q.device) if places is None else places
    parts = (x.tensor_split(offsets[1:-1].long().cpu(), dim) for x, dim in ((q, 1), (k, 1), (v, 1), (every, 0)))
    found = [attend(qi, ki, vi, scale, replace(marks, places=at)) for qi, ki, vi, at in zip(*parts, strict=True)]
    return torch.cat(found, 1).flatten(2).contiguous()


def apart(q: Tensor, k: Tensor | None, v: Tensor | None, heads: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return query, key and value as (B, S, heads, D)."""
    if k is None or v is None:
        together, end = _heads(q, heads + 2 * kv_heads), heads + kv_heads
        return together[:, :, :heads], together[:, :, heads:end], together[:, :, end:]
    return _heads(q, heads), _heads(k, kv_heads), _heads(v, kv_heads)


def _heads(x: Tensor, heads: int) -> Tensor:
    return x if x.ndim == 4 else x.reshape(*x.shape[:2], heads, x.shape[2] // heads)


@dataclass(frozen=True)
class Marks:
    """What attention does with scores before their softmax: which keys a query sees, what is added, and their cap.

    Query i sees keys j ≤ i + diagonal, and of these the last `window`; scores s become cap·tanh(s / cap) first. With
    `places` i and j are those of as many queries as keys.
    """

    mask: Tensor | None = None
    bias: Tensor | None = None
    diagonal: int | None = None
    window: int | None = None
    cap: float | None = None
    places: Tensor | None = None


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, marks: Marks) -> Tensor:
    """Return attention (B, Sq, heads, D) of q, k and v (B, S, heads, D)."""
    group = q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(group, 2) for x in (k, v))
    scores = _marked(torch.einsum("bqhd,bkhd->bhqk", q.float(), k.float()) * scale, marks)
    sees = (scores != -torch.inf).any(-1, keepdim=True)
    weights = torch.where(sees, scores.softmax(-1), 0.0)
    return torch.einsum("bhqk,bkhd->bqhd", weights, v.float())


def _marked(scores: Tensor, marks: Marks) -> Tensor:
    nothing = scores.new_full((), -torch.inf)
    if marks.cap is not None:
        scores = marks.cap * (scores / marks.cap).tanh()
    if marks.diagonal is not None:
        scores = torch.where(_seen(scores, marks, marks.diagonal), scores, nothing)
    mask = marks.mask[:, None, None] if marks.mask is not None and marks.mask.ndim == 2 else marks.mask
    if mask is not None:
        scores = torch.where(mask, scores, nothing) if mask.dtype is torch.bool else scores + mask
    return scores if marks.bias is None else scores + marks.bias


def _seen(scores: Tensor, marks: Marks, diagonal: int) -> Tensor:
    """Return which keys each query sees by their places."""
    at = [marks.places] * 2 if marks.places is not None else [torch.arange(size) for size in scores.shape[-2:]]
    query, key = (each.to(scores.device) for each in at)
    ahead = key - query[:, None] - diagonal
    return ahead <= 0 if marks.window is None else (ahead <= 0) & (ahead > -marks.window)


def _fake(
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
    merged, apart = heads + 2 * kv_heads, q.ndim == 4
    width = q.shape[3] * heads if apart else q.shape[2] if k is not None else q.shape[2] // merged * heads
    return q.new_empty((q.shape[0], q.shape[1], width), dtype=torch.float32)


define(
    "attention(Tensor q, Tensor? k, Tensor? v, Tensor? mask, Tensor? offsets, int heads, int kv_heads, "
    "float scale, bool causal, int diagonal=0, int? window=None, Tensor? places=None) -> Tensor",
    attention,
    _fake,
)
