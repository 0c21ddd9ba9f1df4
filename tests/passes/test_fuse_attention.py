"""Attention becomes the kernel that needs no transposes; what it cannot compute stays, and says why."""

from functools import cache

import models
import pytest
import torch
import transformers
from captured import captured, converted
from golden import check_golden
from graphs import Call, applied, nodes, outputs
from torch import nn
from torch.nn import functional

import fxquant as fxq
from fxquant.backends import read_backend
from fxquant.evaluation.kernels_ran import float_products, kernels_that_ran
from fxquant.graph import edit
from fxquant.graph.text import to_text
from fxquant.kernels.cpu import native
from fxquant.passes.attention_spelling import SDPA
from fxquant.passes.canonicalize import canonicalize
from fxquant.passes.fuse_attention import ATTENTION, FuseAttention

pytestmark = pytest.mark.usefixtures("float32_products")
aten = torch.ops.aten
attend = functional.scaled_dot_product_attention
LAYOUT = {aten.transpose.int, aten.permute.default, aten.reshape.default, aten.unflatten.int, aten.expand.default}


def graphs(model, inputs):
    """Return a model's float graph before and after the pass."""
    return fused(fxq.capture(model.eval(), inputs))


@cache
def graphs_of(name):
    """Return the float graph of one of our models before and after the pass; it must not be changed."""
    return fused(captured(name)[2])


def fused(graph):
    before = canonicalize(graph)
    after, _ = applied(before, FuseAttention())
    return before, after


def assert_same(a, b, inputs):
    for left, right in zip(outputs(a, inputs), outputs(b, inputs), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)


def around(gm, node):
    """Return the ops that move data next to a node, before and behind it."""
    inputs = {each.target for each in node.args[:3] if each is not None}
    return (inputs | {user.target for user in node.users}) & LAYOUT


@pytest.mark.parametrize("name", models.TRANSFORMERS)
def test_every_attention_of_a_model(name):
    model, inputs, _ = captured(name)
    before, after = graphs_of(name)
    assert len(nodes(after, ATTENTION)) == len(nodes(before, SDPA)) > 0
    assert not nodes(after, SDPA)
    assert_same(before, after, inputs)
    assert_same(model, after, inputs)
    other = {
        key: value[:1].repeat(3, 1)[:, : value.shape[1] - 1] if value.ndim == 2 else value
        for key, value in inputs.items()
    }
    assert_same(before, after, other)


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "gpt2", "t5"])
def test_no_views_and_transposes_are_left(name):
    _, after = graphs_of(name)
    assert all(not around(after, node) for node in nodes(after, ATTENTION))


def test_rotary_embeddings_are_read_by_their_strides():
    _, after = graphs_of("llama")
    for node in nodes(after, ATTENTION):
        query, key, value = node.args[:3]
        assert (query.target, key.target) == (aten.transpose.int,) * 2
        assert len(edit.info(value).shape) == 3, "values are what the linear wrote"
        assert edit.info(key).shape[2] == 2, "key heads are not repeated"
        assert node.args[5:7] == (4, 2)


class Block(nn.Module):
    """Attention of x (B, S, width) on itself by one or three linears, and a projection."""

    def __init__(self, width=64, heads=4, kv_heads=4, together=False):
        super().__init__()
        torch.manual_seed(0)
        self.heads, self.kv_heads, self.size = heads, kv_heads, width // heads
        widths = [heads * self.size, kv_heads * self.size, kv_heads * self.size]
        self.inner = nn.ModuleList(nn.Linear(width, n) for n in ([sum(widths)] if together else widths))
        self.widths, self.out = widths, nn.Linear(width, width)

    def parts(self, x):
        if len(self.inner) == 1:
            return self.inner[0](x).split(self.widths, dim=-1)
        return [linear(x) for linear in self.inner]

    def forward(self, x):
        q, k, v = (y.view(y.shape[0], y.shape[1], -1, self.size).transpose(1, 2) for y in self.parts(x))
        y = attend(q, k, v, enable_gqa=self.heads != self.kv_heads)
        return self.out(y.transpose(1, 2).reshape(x.shape))


X = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0))


def listing(*passes):
    """The x86 backend with these listed passes."""
    return read_backend({**fxq.load_backend("x86").to_dict(), "lower": {"passes": list(passes)}}, "test")


@pytest.mark.parametrize("together", [False, True], ids=["merged linears", "one linear"])
def test_columns_of_one_tensor_are_read_as_they_are(together):
    backend = listing("merge_linears", "fuse_attention")
    gm = fxq.quantize(Block(together=together).eval(), (X,), backend=backend)
    (node,) = nodes(gm, ATTENTION)
    assert "linear" in str(node.args[0].target)
    assert node.args[1:3] == (None, None)
    assert edit.info(node.args[0]).shape == (2, 5, 192)
    assert not nodes(gm, aten.slice.Tensor)


def test_columns_in_another_order_are_read_as_three():
    class Swapped(Block):
        def parts(self, x):
            v, k, q = super().parts(x)
            return q, k, v

    _, after = graphs(Swapped(together=True), (X,))
    (node,) = nodes(after, ATTENTION)
    assert None not in node.args[:3]
    assert_same(Swapped(together=True).eval(), after, (X,))


def test_more_columns_than_the_three_are_read_as_three():
    class Wider(Block):
        def parts(self, x):
            q, k, v, _ = torch.cat([*super().parts(x), x], -1).split([*self.widths, 64], dim=-1)
            return q, k, v

    _, after = graphs(Wider(), (X,))
    assert None not in nodes(after, ATTENTION)[0].args[:3]


def heads_of(x, count, size=16):
    return x.reshape(x.shape[0], x.shape[1], count, size).transpose(1, 2)


def repeated(x, times):
    b, heads, s, d = x.shape
    return x[:, :, None].expand(b, heads, times, s, d).reshape(b, heads * times, s, d)


GROUPS = {
    "enable_gqa": lambda q, k: attend(q, k, k, enable_gqa=True),
    "repeated": lambda q, k: attend(q, repeated(k, 2), repeated(k, 2)),
    "one head for all": lambda q, k: attend(q, k[:, :1].expand(-1, 4, -1, -1), k[:, :1].expand(-1, 4, -1, -1)),
    "broadcast": lambda q, k: attend(q, k[:, :1], k[:, :1]),
    "repeated, the values otherwise": lambda q, k: attend(q, repeated(k, 2), repeated(k.relu(), 2).sin()),
}


@pytest.mark.parametrize(("case", "kv_heads"), list(zip(GROUPS, (2, 2, 1, 1, 4), strict=True)))
def test_groups_of_queries(case, kv_heads):
    model = Call(lambda x: GROUPS[case](heads_of(x, 4), heads_of(x[..., :32], 2)).transpose(1, 2).flatten(2)).eval()
    _, after = graphs(model, (X,))
    (node,) = nodes(after, ATTENTION)
    assert node.args[5:7] == (4, kv_heads)
    assert_same(model, after, (X,))
    assert_same(model, after, (X[:1, :3],))


READERS = {
    "heads before positions": lambda y: y * 2,
    "positions before heads": lambda y: y.transpose(1, 2) * 2,
    "all three": lambda y: (y * 2, y.transpose(1, 2) + 1, y.transpose(1, 2).flatten(2)),
    "by permute": lambda y: y.permute(0, 2, 1, 3).reshape(y.shape[0], y.shape[2], -1),
    "flat by head": lambda y: y.flatten(2),
    "the output itself": lambda y: y,
    "twice": lambda y: (y.transpose(1, 2).flatten(2) + 1, y.transpose(1, 2).reshape(y.shape[0], -1, 64) * 2),
}


@pytest.mark.parametrize("case", READERS)
def test_who_reads_the_result(case):
    model = Call(lambda x: READERS[case](attend(heads_of(x, 4), heads_of(x, 4), heads_of(x, 4)))).eval()
    _, after = graphs(model, (X,))
    assert len(nodes(after, ATTENTION)) == 1
    assert_same(model, after, (X,))
    assert_same(model, after, (X[:1, :3],))


MASKS = {
    "bool [Sq, Sk]": lambda x: x[0, :, :1] < x[0, :, 0][None],
    "float [Sq, Sk]": lambda x: x[0, :, 0][:, None] + x[0, :, 1][None],
    "bool [H, Sq, Sk]": lambda x: x[0, :, :4].transpose(0, 1)[:, :, None] < 9 * x[0, :, 0],
    "float [B, 1, 1, Sk]": lambda x: x[:, None, None, :, 0],
}


@pytest.mark.parametrize("case", MASKS)
def test_masks_keep_their_meaning(case):
    """What comes with two dimensions are queries and keys for torch, batch and keys for the kernel."""

    def function(x):
        return attend(*(heads_of(x, 4) for _ in range(3)), attn_mask=MASKS[case](x)).transpose(1, 2).flatten(2)

    model, inputs = Call(function).eval(), (torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(1)),)
    _, after = graphs(model, inputs)
    (node,) = nodes(after, ATTENTION)
    assert len(edit.info(node.args[3]).shape) == 4
    assert_same(model, after, inputs)


def test_cross_attention_scale_and_causality():
    def function(x, y):
        q, k = heads_of(x, 4), heads_of(y, 4)
        return attend(q, k, k.relu(), is_causal=True, scale=0.7).transpose(1, 2).flatten(2)

    _, after = graphs(Call(function), (X, torch.randn(2, 9, 64)))
    (node,) = nodes(after, ATTENTION)
    assert node.args[7:] == (0.7, True)
    for keys in (9, 3, 1):
        assert_same(Call(function), after, (X, torch.randn(2, keys, 64)))


def dropped(x):
    return torch.ops.aten.scaled_dot_product_attention(*(heads_of(x, 4) for _ in range(3)), dropout_p=0.5)


NEAR_MISSES = {
    "float64": (lambda x: attend(*(heads_of(x.double(), 4) for _ in range(3))), "have to be float32"),
    "three dimensions": (lambda x: attend(x, x, x), "have to be float32"),
    "fewer features of values": (
        lambda x: attend(heads_of(x, 4), heads_of(x, 4), heads_of(x[..., :32], 4, 8)),
        "16 and 8 features a head",
    ),
    "as many heads as positions": (lambda x: attend(*(x[:, None].transpose(1, 2),) * 3), "heads and features fixed"),
    "one key batch for all": (
        lambda x: attend(heads_of(x, 4), heads_of(x[:1], 4), heads_of(x[:1], 4)),
        "different batches",
    ),
    "dropout": (dropped, "drops out weights"),
}


@pytest.mark.parametrize("case", NEAR_MISSES)
def test_near_miss(case):
    function, reason = NEAR_MISSES[case]
    _, after = graphs(Call(function), (X,))
    (node,) = nodes(after, SDPA)
    assert reason in edit.marks(node)["fallback"]
    assert edit.marks(node)["fallback"].startswith("kernel attention: ")
    assert not nodes(after, ATTENTION)


@cache
def eager(name, layers=1):
    """Return a model whose attention is spelled out, its inputs, and its graphs as from `graphs`."""
    config = getattr(transformers, f"{name}Config")(**models._ENCODER | {"num_hidden_layers": layers})
    config._attn_implementation = "eager"
    model, inputs = models._random(getattr(transformers, f"{name}Model"), config), models.encoder_inputs()
    return model, inputs, *graphs(model, inputs)


@pytest.mark.parametrize(("name", "layers"), [("Bert", 1), ("MPNet", 2), ("DebertaV2", 1)])
def test_products_around_a_softmax(name, layers):
    model, inputs, before, after = eager(name, layers)
    assert len(nodes(before, SDPA)) == len(nodes(after, ATTENTION)) == layers
    assert aten.softmax.int not in {node.target for node in after.graph.nodes}
    assert_same(before, after, inputs)
    assert_same(model, after, inputs)


def test_masks_are_added_once_for_all_layers():
    *_, after = eager("MPNet", 2)
    assert len({node.args[3] for node in nodes(after, ATTENTION)}) == 1


def test_the_ledger_still_has_every_op():
    def rows(gm):
        return [
            (row.op, row.module_path, row.flops, row.dtype, row.reason) for row in fxq.ledger(gm).rows if row.family
        ]

    apart = fxq.lower(converted("bert"), listing("merge_linears"))
    fused = fxq.lower(converted("bert"), listing("merge_linears", "fuse_attention", "simplify_masks"))
    assert sorted(rows(fused)) == sorted(rows(apart))
    assert fxq.ledger(fused).coverage == fxq.ledger(apart).coverage
    (first, *_) = [row for row in fxq.ledger(fused).rows if row.family == "attention"]
    assert first.kernel == "fxquant.attention"
    assert "its probabilities never reach memory" in first.reason


def test_the_kernel_runs():
    lowered, inputs = fxq.lower(converted("bert")), captured("bert")[1]
    ran = kernels_that_ran(lambda: lowered(**inputs))
    assert ran["fxquant::attention"] == 2
    assert float_products(ran) == {"fxquant::attention": 2}


def test_a_loaded_artifact_is_fused_too(tmp_path):
    gm = fxq.quantize(Block().eval(), (X,))
    fxq.save(gm, tmp_path / "artifact")
    again = fxq.load(tmp_path / "artifact")
    assert [each.target for each in again.graph.nodes] == [each.target for each in gm.graph.nodes]
    assert_same(gm, again, (X[:1, :3],))


@pytest.mark.parametrize("recipe", ["dynamic", "static", "weight-only"])
def test_all_passes_agree_with_none(recipe):
    inputs = captured("bert")[1]
    none, every = (fxq.lower(converted("bert", recipe), backend) for backend in (listing(), "x86"))
    for a, b in zip(outputs(none, inputs), outputs(every, inputs), strict=True):
        assert functional.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0) >= 0.995


def test_without_the_kernels_torch_attends(monkeypatch):
    monkeypatch.setattr(native, "available", lambda: False)
    before, after = fused(captured("bert")[2])
    assert to_text(after) == to_text(before)


def test_golden():
    before, after = graphs(Block(width=16, heads=2, kv_heads=2), (X[..., :16],))
    check_golden("fuse_attention", f"before fuse_attention:\n{to_text(before)}\nafter:\n{to_text(after)}")
