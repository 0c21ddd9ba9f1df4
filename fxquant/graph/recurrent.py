"""Recurrent layers step by step, with their products as linears that can be captured for any length.

    LSTM  i, f, g, o = W x + b + R h + r;   c' = σ(f)·c + σ(i)·tanh(g);   h' = P·σ(o)·tanh(c'), P where it projects
    GRU   r, z = σ(W x + b + R h + r);   n = tanh(W x + b + r·(R h + r));   h' = (1 − z)·n + z·h
    RNN   h' = tanh or relu of W x + b + R h + r

as torch.nn.LSTM, torch.nn.GRU and torch.nn.RNN define them. An export of those fixes the length of the sequence.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence


def unrolled(module: nn.Module) -> nn.Module | None:
    """Return the same function as linears and steps; None for what is no LSTM, GRU or RNN."""
    return Unrolled(module) if type(module) in (nn.LSTM, nn.GRU, nn.RNN) else None


class Unrolled(nn.Module):
    """A recurrent layer, one or several, in one or both directions; dropout is none, as in eval mode."""

    own: Any  # the module that this stands for; no submodule

    def __init__(self, own: Any) -> None:
        super().__init__()
        object.__setattr__(self, "own", own)
        self.directions = 2 if own.bidirectional else 1
        self.layers = nn.ModuleList()
        for layer in range(own.num_layers):
            for suffix in ("", "_reverse")[: self.directions]:
                self.layers.append(_Direction(own, f"l{layer}{suffix}"))

    def forward(self, input: Any, hx: Any = None) -> Any:
        """Return outputs and last states, in the shapes of the module that this stands for."""
        if isinstance(input, PackedSequence):
            return self.own(input, hx)
        batched = input.ndim == 3
        x = input if batched else input.unsqueeze(1)
        x = x.transpose(0, 1) if batched and self.own.batch_first else x
        given = (hx,) if isinstance(hx, Tensor) else hx
        first: Any = self._zeros(x) if given is None else [s if batched else s[:, None] for s in given]
        lasts = []
        for index in range(0, len(self.layers), self.directions):
            parts = []
            for place in range(index, index + self.directions):
                states = tuple(state[place] for state in first)
                outputs, last = self.layers[place](x, states, place > index)
                parts.append(outputs)
                lasts.append(last)
            x = torch.cat(parts, -1) if len(parts) > 1 else parts[0]
        y = x.transpose(0, 1) if batched and self.own.batch_first else x
        ends = [torch.stack(each) for each in zip(*lasts, strict=True)]
        ends = ends if batched else [each[:, 0] for each in ends]
        return y if batched else y[:, 0], tuple(ends) if isinstance(self.own, nn.LSTM) else ends[0]

    def _zeros(self, x: Tensor) -> list[Tensor]:
        widths = (self.own.proj_size or self.own.hidden_size, self.own.hidden_size)
        return [x.new_zeros(len(self.layers), x.shape[1], width) for width in widths]


class _Direction(nn.Module):
    """One layer in one direction: the products with all inputs at once, then a step for each place."""

    def __init__(self, own: Any, suffix: str) -> None:
        super().__init__()
        self.input = _linear(own, "ih", suffix)
        recurrent = _linear(own, "hh", suffix)
        if isinstance(own, nn.LSTM):
            self.step: Any = _LSTMStep(recurrent, _linear(own, "hr", suffix) if own.proj_size else None)
        else:
            self.step = _GRUStep(recurrent) if isinstance(own, nn.GRU) else _RNNStep(recurrent, own.nonlinearity)

    def forward(self, x: Tensor, states: tuple[Tensor, ...], backwards: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the outputs [S, B, H] and the last states for x [S, B, K]."""
        rows = self.input(x).unbind(0)
        outputs = []
        for row in reversed(rows) if backwards else rows:
            states = self.step(row, *states[: self.step.count])
            outputs.append(states[0])
        return torch.stack(outputs[::-1] if backwards else outputs), states


# What would be captured for one length only, as it goes from place to place in Python.
STEPWISE = (Unrolled, _Direction)


class _LSTMStep(nn.Module):
    count = 2

    def __init__(self, recurrent: nn.Linear, projection: nn.Linear | None) -> None:
        super().__init__()
        self.recurrent, self.projection = recurrent, projection

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next h [B, P] and c [B, H] for x [B, 4·H]; P is H where nothing projects."""
        i, f, g, o = (x + self.recurrent(h)).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        return h if self.projection is None else self.projection(h), c


class _GRUStep(nn.Module):
    count = 1

    def __init__(self, recurrent: nn.Linear) -> None:
        super().__init__()
        self.recurrent = recurrent

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor]:
        """Return the next h [B, H] for x [B, 3·H]."""
        (xr, xz, xn), (hr, hz, hn) = x.chunk(3, -1), self.recurrent(h).chunk(3, -1)
        update, n = torch.sigmoid(xz + hz), torch.tanh(xn + torch.sigmoid(xr + hr) * hn)
        return ((1 - update) * n + update * h,)


class _RNNStep(nn.Module):
    count = 1

    def __init__(self, recurrent: nn.Linear, curve: str) -> None:
        super().__init__()
        self.recurrent = recurrent
        self.curve = {"tanh": torch.tanh, "relu": torch.relu}[curve]

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor]:
        """Return the next h [B, H] for x [B, H]."""
        return (self.curve(x + self.recurrent(h)),)


def _linear(own: Any, kind: str, suffix: str) -> nn.Linear:
    """Return a linear on the tensors of a recurrent layer."""
    weight = getattr(own, f"weight_{kind}_{suffix}")
    bias = own.bias and kind != "hr"
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias, device="meta")
    linear.weight = weight
    if bias:
        linear.bias = getattr(own, f"bias_{kind}_{suffix}")
    return linear
