"""Encoders whose attention is `fxquant::attention` already, as in lowered graphs, with heads of any kind."""

import torch
from torch import Tensor, nn

VOCABULARY, WIDTH, HEADS, POSITIONS = 50, 32, 4, 40


def attend(qkv, mask, causal=False, heads=HEADS, around=None):
    """Return self-attention of merged query, key and value (B, S, 3·WIDTH), to so many tokens around each, or all."""
    scale = (WIDTH // heads) ** -0.5
    order = (causal,) if around is None else (True, around, 2 * around + 1, None)
    return torch.ops.fxquant.attention(qkv, None, None, mask, None, heads, heads, scale, *order)


def rotate(x, angles):
    """Return x (B, S, heads, D) with rotated halves, by angles (1, S, 1, D)."""
    a, b = x.chunk(2, -1)
    return x * angles.cos() + torch.cat([-b, a], -1) * angles.sin()


class Layer(nn.Module):
    """Attention and feed-forward, with residuals and norms behind them."""

    def __init__(self, causal=False, rotary=False, around=None):
        super().__init__()
        self.causal, self.rotary, self.around = causal, rotary, around
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)])

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        y = (
            self.rotated(self.qkv(x), mask)
            if self.rotary
            else attend(self.qkv(x), mask, self.causal, HEADS, self.around)
        )
        x = self.norms[0](x + self.out(y))
        return self.norms[1](x + self.down(nn.functional.gelu(self.up(x))))

    def rotated(self, qkv, mask):
        size = WIDTH // HEADS
        q, k, v = (part.unflatten(-1, (HEADS, size)) for part in qkv.split(WIDTH, -1))
        rate = torch.arange(size) / size
        angles = torch.arange(qkv.shape[1])[None, :, None, None].float() * rate
        q, k = rotate(q, angles), rotate(k, angles)
        return torch.ops.fxquant.attention(q, k, v, mask, None, HEADS, HEADS, size**-0.5, self.causal)


class Encoder(nn.Module):
    """Embeddings, layers, and a head that is given the last hidden states and the mask as it was given."""

    def __init__(self, head=lambda hidden, mask: hidden, layers=2, causal=False, rotary=False, around=None):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.words, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(POSITIONS, WIDTH)
            self.layers = nn.ModuleList([Layer(causal, rotary, around) for _ in range(layers)])
            self.norm, self.pool = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)
        self.head = head
        self.register_buffer("position_ids", torch.arange(POSITIONS)[None])
        self.eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor):
        mask = attention_mask.to(torch.bool)
        x = self.norm(self.words(input_ids) + self.places(self.position_ids[:, : input_ids.shape[1]]))
        for layer in self.layers:
            x = layer(x, mask)
        return self.head(x, attention_mask)


def inputs(mask, dtype=torch.int64, seed=0):
    """Return random ids, another id at padding, and the mask."""
    mask = torch.as_tensor(mask)
    ids = torch.randint(1, VOCABULARY, mask.shape, generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": mask.to(dtype)}
