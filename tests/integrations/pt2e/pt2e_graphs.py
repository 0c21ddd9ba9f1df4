"""A small encoder as torchao's PT2E flow makes it, and modules that call operators of quantized_decomposed."""

from functools import cache

import torch
from torch import nn
from torch.export import Dim
from torch.nn import functional

import fxquant as fxq
from fxquant.integrations.pt2e.operators import decomposed

WIDTH, HEADS, VOCABULARY = 32, 4, 40
ops = decomposed()


class Layer(nn.Module):
    """Attention under a mask and a feed-forward, with norms behind."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 64), nn.Linear(64, WIDTH)
        self.first, self.last = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x, seen):
        q, k, v = (part(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        context = functional.scaled_dot_product_attention(q, k, v, seen)
        x = self.first(x + self.out(context.transpose(1, 2).flatten(2)))
        return self.last(x + self.down(functional.gelu(self.up(x))))


class Encoder(nn.Module):
    """Look-up, one layer, and a pooled output."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList([Layer()])
        self.pool = nn.Linear(WIDTH, WIDTH)

    def forward(self, input_ids, mask):
        x = self.words(input_ids)
        for layer in self.layers:
            x = layer(x, mask.bool()[:, None, None, :])
        return {"hidden": x, "pooled": torch.relu(self.pool(x[:, 0]))}


LINEARS = 7


def inputs(batch=2, tokens=6, seed=0):
    """Return ids and a mask whose last row has padding."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(batch, tokens, dtype=torch.long)
    mask[-1, tokens // 2 :] = 0
    return torch.randint(VOCABULARY, (batch, tokens), generator=generator), mask


@cache
def encoder():
    """Return the float model."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Encoder().eval().requires_grad_(False)


def exported():
    """Return the module of an exported program that takes any batch and any number of tokens."""
    sizes = {0: Dim("batch", max=1024), 1: Dim("tokens", max=512)}
    return torch.export.export(encoder(), inputs(), dynamic_shapes=(sizes, sizes)).module()


def written(module, *example):
    """Return a module that calls operators by itself as `convert_pt2e` would return it."""
    return torch.export.export(module.eval(), example).module()


NAMES = ("input_ids", "mask")


def named(*args):
    return dict(zip(NAMES, inputs(*args), strict=True))


@cache
def converted(recipe, backend="x86"):
    """Return a Q/DQ graph of the encoder, which must not be changed."""
    prepared = fxq.prepare(captured(), backend, recipe)
    if recipe == "static":
        fxq.calibrate(prepared, [named(4, 8, seed) for seed in range(3)], progress=False)
    return fxq.convert(prepared)


@cache
def captured():
    """Return the captured encoder, which must not be changed."""
    return fxq.capture(encoder(), named())


class Chain(nn.Module):
    """Linears with fixed scales in and out: through relu, and through a view that integers are handed on by."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(16, 24), nn.Linear(24, 16), nn.Linear(16, 8)

    def forward(self, x):
        x = torch.relu(self.first(x))
        x = self.second(x).unflatten(-1, (2, 8)).transpose(-1, -2).flatten(-2)
        return self.third(x)


X = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(0))


@cache
def chain(backend="x86"):
    """Return the Q/DQ graph of a chain with fixed scales."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        graph = fxq.prepare(fxq.capture(Chain().eval(), (X,)), backend, "static")
    return fxq.convert(fxq.calibrate(graph, [(X,)], progress=False))
