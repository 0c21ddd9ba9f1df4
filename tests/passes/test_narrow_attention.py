"""Queries, keys and values in bfloat16: where nothing else reads them, and only where attention multiplies bfloat16."""

import pytest
import torch
from golden import check_golden
from graphs import lowered_graph
from instruction_sets import using
from torch import nn
from torch.nn import functional

from fxquant.graph import edit
from fxquant.graph.text import to_text
from fxquant.kernels.cpu import native
from fxquant.passes.fuse_attention import ATTENTION
from fxquant.passes.narrow_attention import NarrowAttention

PASSES = ["merge_linears", "fuse_attention", "simplify_masks", "fuse_rows"]


@pytest.fixture(autouse=True)
def bfloat16_kernels():
    with using("avx512_bf16"):
        yield


class Layer(nn.Module):
    """A norm, merged query, key and value, attention and a linear; `returned` says what else the model returns."""

    def __init__(self, returned=""):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.out = nn.LayerNorm(64), nn.Linear(64, 64)
        self.query, self.key, self.value = (nn.Linear(64, 64) for _ in range(3))
        self.returned = returned

    def forward(self, x):
        hidden = self.norm(x)
        q, k, v = (each(hidden) for each in (self.query, self.key, self.value))
        heads = [each.unflatten(2, (2, 32)).transpose(1, 2) for each in (q, k, v)]
        y = functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        if self.returned == "queries":
            return self.out(y), q, k, v
        if self.returned == "shifted":
            return self.out(y + q)
        return self.out(y)


def x(*shape, seed=0):
    return torch.randn(*(shape or (2, 7, 64)), generator=torch.Generator().manual_seed(seed))


def lowered(model, recipe="dynamic"):
    return lowered_graph(model, x(), recipe=recipe, passes=PASSES)


@pytest.mark.parametrize("recipe", ["dynamic", "static"])
def test_golden(recipe):
    gm = lowered(Layer(), recipe)
    assert NarrowAttention().apply(gm) == 1
    gm.graph.lint()
    check_golden(f"narrow_attention_{recipe}", to_text(gm))


@pytest.mark.parametrize("recipe", ["dynamic", "static"])
def test_results_stay_close(recipe):
    gm = lowered(Layer(), recipe)
    inputs = [x(), x(1, 1, 64), x(3, 40, 64, seed=1)]
    expected = [gm(each) for each in inputs]
    NarrowAttention().apply(gm)
    gm.recompile()
    for each, wanted in zip(inputs, expected, strict=True):
        y = gm(each)
        assert y.dtype is torch.float32
        assert functional.cosine_similarity(y.flatten(), wanted.flatten(), 0) > 0.999


def test_the_graph_knows_the_dtype():
    gm = lowered(Layer())
    NarrowAttention().apply(gm)
    (attention,) = (node for node in gm.graph.nodes if node.target is ATTENTION)
    assert edit.info(attention.args[0]).dtype is torch.bfloat16
    assert edit.info(attention).dtype is torch.float32


@pytest.mark.parametrize("returned", ["queries", "shifted"])
def test_what_others_read_stays(returned):
    gm = lowered(Layer(returned))
    before = to_text(gm)
    assert NarrowAttention().apply(gm) == 0
    assert to_text(gm) == before


def test_sizes_may_be_read():
    gm = lowered(Layer())
    (attention,) = (node for node in gm.graph.nodes if node.target is ATTENTION)
    with gm.graph.inserting_before(attention):
        gm.graph.call_function(torch.ops.aten.sym_size.int, (attention.args[0], 1))
    assert NarrowAttention().apply(gm) == 1


def test_other_instruction_sets_keep_float32():
    gm = lowered(Layer())
    native.use_isa("avx2")
    assert NarrowAttention().apply(gm) == 0


def test_twice_is_once():
    gm = lowered(Layer())
    assert NarrowAttention().apply(gm) == 1
    before = to_text(gm)
    NarrowAttention().apply(gm)
    assert to_text(gm) == before
