"""Attention on a cache and what is joined to it becomes one kernel; any other attention stays."""

import operator

import pytest
import torch
from generative import decoder, prompts
from golden import check_golden
from graphs import Call, applied, nodes
from torch.nn import functional

import fxquant as fxq
from fxquant.graph import edit
from fxquant.graph.text import to_text
from fxquant.passes.attention_spelling import SDPA
from fxquant.passes.canonicalize import canonicalize
from fxquant.passes.fuse_caches import CACHED, CROSS, FuseCaches
from fxquant.passes.fuse_rotary import ROTARY, FuseRotary
from fxquant.passes.simplify_masks import SimplifyMasks

attend = functional.scaled_dot_product_attention


pytestmark = pytest.mark.usefixtures("float32_products")


def apart(x, heads=4):
    return x.unflatten(2, (heads, 8)).transpose(1, 2)


def together(x):
    return x.transpose(1, 2).flatten(2)


def plain(x, key, value):
    q, k, v = x.split(32, -1)
    key, value = torch.cat((key, apart(k)), 2), torch.cat((value, apart(v)), -2)
    return together(attend(apart(q), key, value)), key, value


def grouped(x, key, value):
    q, k, v = x.split((32, 16, 16), -1)
    key, value = torch.cat((key, apart(k, 2)), 2), torch.cat((value, apart(v, 2)), 2)
    wide = [y.unsqueeze(2).expand(-1, -1, 2, -1, -1).reshape(2, 4, 8, 8) for y in (key, value)]
    return together(attend(apart(q), *wide)), key, value


def separate(x, key, value):
    y = x[..., :32] * 2
    key, value = torch.cat((key, apart(y)), 2), torch.cat((value, apart(y + 1)), 2)
    return together(attend(apart(y - 1), key, value, is_causal=True)), key, value


FORMS = {"plain": (plain, 96, 4), "grouped": (grouped, 64, 2), "separate": (separate, 40, 4)}


def behind(x, key, value):
    q, k, v = x.split(32, -1)
    key, value = torch.cat((apart(k), key), 2), torch.cat((apart(v), value), 2)
    return together(attend(apart(q), key, value)), key, value


def three(x, key, value):
    q, k, v = x.split(32, -1)
    key, value = (torch.cat((old, apart(new), apart(new)), 2) for old, new in ((key, k), (value, v)))
    return together(attend(apart(q), key, value)), key, value


def keys_only(x, key, value):
    q, k, _ = x.split(32, -1)
    key = torch.cat((key, apart(k)), 2)
    return together(attend(apart(q), key, key * 2)), key, value


def fewer_queries(x, key, value):
    q, k, v = x.split(32, -1)
    key, value = torch.cat((key, apart(k)), 2), torch.cat((value, apart(v)), 2)
    return together(attend(apart(q)[:, :, -1:], key, value)), key, value


def no_input(x, key, value):
    return plain(x, key * 2, value * 2)


NEAR_MISSES = {
    "no input of the graph": no_input,
    "in front": behind,
    "three parts": three,
    "keys alone": keys_only,
    "fewer queries": fewer_queries,
}


def fused(function, width, held):
    inputs = (torch.randn(2, 3, width), torch.randn(2, held, 5, 8), torch.randn(2, held, 5, 8))
    before = canonicalize(fxq.capture(Call(function).eval(), inputs, dynamic=False))
    after, _ = applied(before, FuseCaches())
    return before, after, inputs


@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_one_kernel(name):
    before, after, inputs = fused(*FORMS[name])
    (node,) = nodes(after, CACHED)
    assert not nodes(after, torch.ops.aten.cat.default)
    assert not nodes(after, SDPA)
    assert arguments_of(node)["diagonal"] == (0 if name == "separate" else None)
    assert (node.args[1] is None) == (name != "separate"), "columns of one tensor are read as they are"
    for found, expected in zip(after(*inputs), before(*inputs), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_miss(name):
    _, after, _ = fused(NEAR_MISSES[name], 96, 4)
    assert nodes(after, SDPA)
    assert not nodes(after, CACHED)


def lowered_step(name):
    step = canonicalize(fxq.capture_generation(decoder(name), prompts()).graph("step"))
    return step, applied(step, FuseRotary(), FuseCaches(), SimplifyMasks())[0]


# What attention is left with beside the causal order: the dimensions of its mask, and which other arguments it has.
STEPS = {
    "gpt2": {"diagonal"},
    "gpt-neox": {"diagonal", "cos"},
    "llama": {"diagonal", "cos"},
    "mistral": {"diagonal", "cos", "window"},
    "qwen3": {"diagonal", "cos", "q_norm", "k_norm"},
    "gemma2": {"diagonal", "cos", "cap", "window"},
    "gemma3": {"diagonal", "cos", "q_norm", "k_norm", "window"},
    "phi3": {"diagonal", "cos"},
    "falcon": {"diagonal", "cos"},
    "bloom": {"diagonal", "bias"},
}
ARGUMENTS = [argument.name for argument in CACHED._schema.arguments]
ALWAYS = {"q", "k", "v", "past_key", "past_value", "mask", "heads", "kv_heads", "scale", "eps", "interleaved", "sin"}
ALWAYS |= {"groups"}
# In how many groups the heads of one linear lie; in others query, key and value have a linear each.
ONE_LINEAR = {"gpt2": 1, "gpt-neox": 4, "phi3": 1, "falcon": 1, "bloom": 4}


def arguments_of(node):
    return dict(zip(ARGUMENTS, node.args, strict=True))


@pytest.mark.parametrize("name", STEPS)
def test_a_step_of_a_model_has_one_kernel_for_each_layer(name):
    before, after = lowered_step(name)
    found = nodes(after, CACHED)
    assert len(found) == len([node for node in before.graph.nodes if node.name.startswith("key_")])
    for target in (ROTARY, SDPA, torch.ops.aten.softmax.int):
        assert not nodes(after, target)
    assert not [node for node in nodes(after, torch.ops.aten.rms_norm.default) if edit.path_of(node).endswith("_norm")]
    used = set()
    for node in found:
        given = arguments_of(node)
        assert len(edit.info(given["mask"]).shape) == 2
        assert (given["k"] is None, given["groups"]) == (name in ONE_LINEAR, ONE_LINEAR.get(name, 1))
        used |= {key for key, value in given.items() if value is not None} - ALWAYS
        assert all(user.target is operator.getitem for user in node.users)
    assert used == STEPS[name]
    given = {}
    for node in before.graph.find_nodes(op="placeholder"):
        known = edit.info(node)
        past = node.target.startswith(("key_", "value_"))
        given[node.target] = torch.randn(2, known.shape[1], 5, known.shape[3]) if past else None
    given["input_ids"] = torch.randint(4, 60, (2, 3))
    given["attention_mask"] = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1], [1] * 8])
    if "position_ids" in given:
        given["position_ids"] = torch.arange(5, 8).repeat(2, 1)
    given["logits_to_keep"] = torch.tensor([1, 2])
    with torch.no_grad():
        one, two = before(**given), after(**given)
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=1e-4, atol=1e-4)


def test_a_decoder_reads_its_source_where_it_lies():
    def cross(x, key, value, mask):
        return together(attend(apart(x[..., :32]), key, value, attn_mask=mask[:, None, None]))

    inputs = torch.randn(2, 3, 40), torch.randn(2, 4, 9, 8), torch.randn(2, 4, 9, 8), torch.rand(2, 9) > 0.3
    before = canonicalize(fxq.capture(Call(cross).eval(), inputs))
    after = edit.clone(before)
    for each in (FuseCaches(), SimplifyMasks()):
        each.apply(after)
    after.recompile()
    (node,) = nodes(after, CROSS)
    assert not nodes(after, torch.ops.aten.transpose.int)
    assert len(edit.info(node.args[3]).shape) == 2
    torch.testing.assert_close(after(*inputs), before(*inputs), rtol=1e-5, atol=1e-5)


def test_golden():
    before, after, _ = fused(*FORMS["grouped"])
    check_golden("fuse_caches", f"before fuse_caches:\n{to_text(before)}\nafter:\n{to_text(after)}")
