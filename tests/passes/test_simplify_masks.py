"""Masks that models build become none, causal, or a padding mask [B, S]; any other stays, and says why."""

import math
from functools import cache

import models
import pytest
import torch
import transformers
from captured import captured, converted
from golden import check_golden
from graphs import Call, applied, outputs
from torch import nn
from torch.nn import functional

import fxquant as fxq
from fxquant.graph import edit
from fxquant.graph.text import to_text
from fxquant.passes.attention_spelling import SDPA
from fxquant.passes.canonicalize import canonicalize
from fxquant.passes.fuse_attention import ATTENTION, FuseAttention
from fxquant.passes.simplify_masks import SimplifyMasks

pytestmark = pytest.mark.usefixtures("float32_products")
LEAST = torch.finfo(torch.float32).min


def small(model_class, config_class, **changes):
    changes = {**models._ENCODER, **changes}
    return lambda: (models._random(model_class, config_class(**changes)), models.encoder_inputs())


def without_mask(make):
    def made():
        model, inputs = make()
        return model, {name: value for name, value in inputs.items() if name != "attention_mask"}

    return made


bart = small(
    transformers.BartModel,
    transformers.BartConfig,
    d_model=32,
    encoder_layers=1,
    decoder_layers=1,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
    encoder_ffn_dim=64,
    decoder_ffn_dim=64,
)
opt = small(transformers.OPTForCausalLM, transformers.OPTConfig, ffn_dim=64, word_embed_proj_dim=32)
mistral = small(transformers.MistralForCausalLM, transformers.MistralConfig, num_key_value_heads=2, sliding_window=4)


def seq2seq(make):
    def made():
        return make()[0], models.seq2seq_inputs()

    return made


# What the attentions of a model are left with: the dimensions of the mask, 0 for none, whether they are causal, and of
# those with a window up to where they see and how much of it.
KEY, CAUSAL, BOTH, NONE, WHOLE = (2, False), (0, True), (2, True), (0, False), (4, False)
MODELS = {
    "bert": (models.bert, {KEY}),
    "roberta": (models.roberta, {KEY}),
    "distilbert": (models.distilbert, {KEY}),
    "gpt2": (models.gpt2, {BOTH}),
    "llama": (models.llama, {BOTH}),
    "opt": (opt, {BOTH}),
    "bart": (seq2seq(bart), {KEY, CAUSAL}),
    "t5": (models.t5, {KEY, WHOLE}),
    "t5-encoder": (models.t5_encoder, {WHOLE}),
    "mistral": (mistral, {(2, True, 0, 4)}),
    "bert without a mask": (without_mask(models.bert), {NONE}),
    "gpt2 without a mask": (without_mask(models.gpt2), {CAUSAL}),
    "llama without a mask": (without_mask(models.llama), {CAUSAL}),
}


@cache
def fused_model(name):
    """Return one of these models with its inputs, and its graphs as from `fused`; they must not be changed."""
    if name in models.EVERY:
        model, inputs, graph = captured(name)
        return model, inputs, *simplified(graph)
    model, inputs = MODELS[name][0]()
    return model, inputs, *fused(model, inputs)


def kept(gm):
    """Return dimensions of the mask, causality and window of every attention."""
    found = [node.args for node in gm.graph.nodes if node.target is ATTENTION]
    return [(0 if args[3] is None else len(edit.info(args[3]).shape), args[8], *args[9:11]) for args in found]


def fused(model, inputs):
    """Return the float graph of a model with kernels for attention, before and after the pass."""
    return simplified(fxq.capture(model, inputs))


def simplified(graph):
    before = canonicalize(graph)
    assert FuseAttention().apply(before)
    before.recompile()
    after, _ = applied(before, SimplifyMasks())
    return before, after


@pytest.mark.parametrize("name", MODELS)
def test_models_are_left_with(name):
    *_, after = fused_model(name)
    assert set(kept(after)) == MODELS[name][1]


def resized(inputs, batch, length):
    """Return inputs of another batch and length; the decoder's differ in length."""
    sizes = {name: length - 3 if name.startswith("decoder") else length for name in inputs}
    return {
        name: torch.ones(batch, length, dtype=torch.long)
        if name == "attention_mask"
        else models.ids(batch, sizes[name], seed)
        for seed, name in enumerate(inputs)
    }


PADDINGS = {
    "right": lambda keep: [keep[row].__setitem__(slice(keep.shape[1] - 2 * row, None), 0) for row in range(len(keep))],
    "left": lambda keep: [keep[row].__setitem__(slice(0, 2 * row), 0) for row in range(len(keep))],
    "within": lambda keep: [keep[row].__setitem__(slice(2, 2 + row), 0) for row in range(len(keep))],
}


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("name", MODELS)
def test_models_give_what_they_gave(name, padding):
    model, inputs, before, after = fused_model(name)
    for batch, length in ((3, 17), (1, 6), (2, 12)):
        batches = resized(inputs, batch, length)
        if "attention_mask" in batches:
            PADDINGS[padding](batches["attention_mask"])
        with torch.no_grad():
            expected = outputs(model, batches)
        for ours, theirs, others in zip(outputs(after, batches), outputs(before, batches), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(ours, others, rtol=1e-4, atol=2e-5)


def test_a_loaded_artifact_is_simplified_too(tmp_path):
    lowered = fxq.lower(converted("bert"))
    fxq.save(lowered, tmp_path / "artifact")
    again = fxq.load(tmp_path / "artifact")
    assert set(kept(again)) == {KEY}
    inputs = resized(captured("bert")[1], 3, 17)
    PADDINGS["left"](inputs["attention_mask"])
    for ours, theirs in zip(outputs(again, inputs), outputs(lowered, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


class Attention(nn.Module):
    """Attention of x (B, S, 32) on itself, with a mask that a function makes of a padding mask (B, S)."""

    def __init__(self, mask):
        super().__init__()
        self.mask = mask

    def forward(self, x, keep):
        q = x.view(x.shape[0], x.shape[1], 4, 8).transpose(1, 2)
        y = functional.scaled_dot_product_attention(q, q, q, attn_mask=self.mask(keep))
        return y.transpose(1, 2).flatten(2)


def length(keep):
    return torch.arange(keep.shape[1])


def causal(keep):
    return length(keep)[None] <= length(keep)[:, None]


def ahead(keep):
    return length(keep)[None] - length(keep)[:, None]


def additive(keep):
    return (1.0 - keep[:, None, None].float()) * LEAST


FORMS = {
    "bool [B, 1, 1, S]": (lambda keep: keep.bool()[:, None, None], KEY),
    "bool [B, 1, S, S]": (lambda keep: keep.bool()[:, None, None].expand(-1, 1, keep.shape[1], -1), KEY),
    "one row for all": (lambda keep: keep.bool()[0][None], KEY),
    "added": (additive, KEY),
    "added, of truth values": (lambda keep: torch.where(keep.bool(), 0.0, -math.inf)[:, None, None], KEY),
    "added, filled": (lambda keep: torch.zeros(keep.shape).masked_fill(keep == 0, -math.inf)[:, None, None], KEY),
    "not ignored": (lambda keep: ~(keep == 0)[:, None, None], KEY),
    "added to a triangle": (lambda keep: torch.full((keep.shape[1],) * 2, LEAST).triu(1) + additive(keep), BOTH),
    "a triangle": (lambda keep: torch.ones(keep.shape[1], keep.shape[1], dtype=torch.bool).tril(), CAUSAL),
    "causal and padding": (lambda keep: causal(keep) & keep.bool()[:, None, None], BOTH),
    "a window": (lambda keep: causal(keep) & (ahead(keep) > -3), (0, True, 0, 3)),
    "keys before the query only": (lambda keep: ahead(keep) < 0, (0, True, -1, None)),
    "keys around the query": (lambda keep: (ahead(keep).abs() <= 2) & keep.bool()[:, None, None], (2, True, 2, 5)),
    "neighbours": (lambda keep: (-ahead(keep)).abs() < 2, (0, True, 1, 3)),
    "zeros": (lambda keep: torch.zeros(keep.shape[1], keep.shape[1]), NONE),
    "every key": (lambda keep: torch.ones(keep.shape[0], 1, 1, keep.shape[1], dtype=torch.bool), NONE),
}


@pytest.mark.parametrize("form", FORMS)
def test_form(form):
    function, expected = FORMS[form]
    generator = torch.Generator().manual_seed(0)
    keep = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 1, 0]])
    model = Attention(function).eval()
    before, after = fused(model, (torch.randn(2, 5, 32, generator=generator), keep))
    assert kept(after) == [expected]
    keep = torch.tensor([[1, 0, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0, 0]])
    x = torch.randn(3, 7, 32, generator=generator)
    for gm in (before, model):
        torch.testing.assert_close(outputs(after, (x, keep))[0], outputs(gm, (x, keep))[0], rtol=1e-5, atol=1e-5)


NEAR_MISSES = {
    "keys behind the query only": (lambda keep: ahead(keep) > 0, "the order of query and key"),
    "keys far from the query": (lambda keep: ahead(keep).abs() >= 2, "by more than batch"),
    "blocks of keys and queries": (lambda keep: keep[:, None, None] == keep[:, None, :, None], "by more than batch"),
    "a bias": (lambda keep: length(keep)[None].float() * 0.1 + 0.0 * length(keep)[:, None], "adds other numbers"),
    "a mild penalty": (lambda keep: (1.0 - keep[:, None, None].float()) * -100.0, "adds other numbers"),
    "two padding masks": (
        lambda keep: keep.bool()[:, None, None] & (keep.cumsum(1) > 2)[:, None, None],
        "one padding mask",
    ),
    "padding of queries": (lambda keep: keep.bool()[:, None, :, None].expand(-1, 1, -1, keep.shape[1]), "by more than"),
    "keys shifted by one": (lambda keep: keep.bool()[:, 1:][:, None, None].expand(-1, 1, 1, -1), "by more than"),
}


@pytest.mark.parametrize("case", NEAR_MISSES)
def test_near_miss(case):
    function, reason = NEAR_MISSES[case]
    x, keep = torch.randn(2, 5, 32), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 1, 1]])

    class Shorter(Attention):
        def forward(self, x, keep):
            mask = self.mask(keep)
            keys = x[:, : mask.shape[-1]]
            q, k = (y.view(y.shape[0], y.shape[1], 4, 8).transpose(1, 2) for y in (x, keys))
            return functional.scaled_dot_product_attention(q, k, k, attn_mask=mask).transpose(1, 2).flatten(2)

    before, after = fused(Shorter(function).eval(), (x, keep))
    (node,) = [node for node in after.graph.nodes if node.target is ATTENTION]
    assert node.args[3] is not None
    assert not node.args[8]
    assert reason in edit.marks(node)["mask"]
    torch.testing.assert_close(outputs(after, (x, keep)), outputs(before, (x, keep)), rtol=0, atol=0)


def test_kernels_of_other_sets_have_no_windows():
    inputs = torch.randn(2, 5, 32), torch.ones(2, 5)
    for form, reason in (("a window", "the last keys of"), ("keys before the query only", "an offset between them")):
        before, _ = fused(Attention(FORMS[form][0]).eval(), inputs)
        edit.mark(before, kernels="cuda")
        (node,) = [node for node in applied(before, SimplifyMasks())[0].graph.nodes if node.target is ATTENTION]
        assert len(node.args) == 9 and node.args[3] is not None
        assert reason in edit.marks(node)["mask"]


def test_a_query_of_which_every_key_is_hidden_gets_zeros():
    """For an added mask torch gives the mean of the hidden there; a padded row has no meaning, so nothing reads it."""
    x, keep = torch.randn(2, 5, 32), torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 0, 0]])
    _, after = fused(Attention(additive).eval(), (x, keep))
    assert (outputs(after, (x, keep))[0][1] == 0).all()


def test_torch_attention_is_given_what_it_takes():
    def mask_left(form):
        gm = canonicalize(fxq.capture(Attention(FORMS[form][0]).eval(), (x, keep)))
        expected = outputs(gm, (x, keep))
        count = SimplifyMasks().apply(gm)
        gm.recompile()
        torch.testing.assert_close(outputs(gm, (x, keep)), expected, rtol=1e-6, atol=1e-6)
        (node,) = [node for node in gm.graph.nodes if node.target is SDPA]
        return count, node

    x, keep = torch.randn(2, 5, 32), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 1, 0]])
    count, node = mask_left("every key")
    assert (count, node.args[3], node.args[5]) == (1, None, False)
    count, node = mask_left("a triangle")
    assert (count, node.args[3], node.args[5]) == (1, None, True)
    count, node = mask_left("bool [B, 1, S, S]")
    assert count == 1
    assert edit.info(node.args[3]).shape == (2, 1, 1, 5)
    count, node = mask_left("causal and padding")
    assert count == 0
    assert "takes one of both" in edit.marks(node)["mask"]


def test_what_is_simplified_stays():
    after = edit.clone(fused_model("gpt2")[3])
    text = to_text(after)
    assert SimplifyMasks().apply(after) == 0
    assert to_text(after) == text


def test_masks_are_made_once():
    *_, after = fused_model("bert")
    masks = {node.args[3] for node in after.graph.nodes if node.target is ATTENTION}
    assert len(masks) == 1


def test_nothing_to_do():
    gm = canonicalize(fxq.capture(Call(torch.relu).eval(), (torch.randn(2, 3),)))
    assert SimplifyMasks().apply(gm) == 0


def test_golden():
    before, after = fused(Attention(FORMS["causal and padding"][0]).eval(), (torch.randn(2, 5, 32), torch.ones(2, 5)))
    check_golden("simplify_masks", f"before simplify_masks:\n{to_text(before)}\nafter:\n{to_text(after)}")
