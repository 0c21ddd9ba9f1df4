"""`fxquant::rotary`: rotary position embedding of queries or keys.

Pairs of features are turned by an angle that grows with the position. csrc/rotary.h computes it; the implementation
here says what it means and runs anywhere.
"""

import torch
from torch import Tensor

from fxquant.kernels.library import define


def rotary(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Return x·cos + turned(x)·sin in the first R features, and x in the others; float32.

    Args:
        x: (B, heads, S, D).
        cos: float32 (B or 1, S, R), with an axis of 1 for the heads or without; R ≤ D, even.
        sin: as cos.
        interleaved: turned(x) is (−x₁, x₀, −x₃, x₂, …), else (−x_{R/2}, …, −x_{R−1}, x₀, …, x_{R/2−1}).
    """
    rotated = cos.shape[-1]
    own, rest = x[..., :rotated].float(), x[..., rotated:].float()
    if interleaved:
        turned = torch.stack((-own[..., 1::2], own[..., ::2]), -1).flatten(-2)
    else:
        turned = torch.cat((-own[..., rotated // 2 :], own[..., : rotated // 2]), -1)
    return torch.cat((own * _by_head(cos) + turned * _by_head(sin), rest), -1)


def _by_head(factors: Tensor) -> Tensor:
    return factors.unsqueeze(1) if factors.ndim == 3 else factors


def _fake(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    batch, heads, positions, features = x.shape
    return x.new_empty((batch, positions, heads, features), dtype=torch.float32).transpose(1, 2)


define("rotary(Tensor x, Tensor cos, Tensor sin, bool interleaved) -> Tensor", rotary, _fake)
