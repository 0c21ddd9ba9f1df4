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
from fxquant.passes.fuse_caches import CACHED, FuseCaches
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
    assert node.args[11] == (0 if name == "separate" else None)
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


# What attention is left with: the dimensions of the mask, 0 for none, and whether causality is a number of its own.
STEPS = {
    "gpt2": (2, True),
    "gpt-neox": (2, True),
    "llama": (2, True),
    "mistral": (4, False),
    "qwen3": (2, True),
    "phi3": (2, True),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_of_a_model_has_one_kernel_for_each_layer(name):
    before, after = lowered_step(name)
    found = nodes(after, CACHED)
    assert len(found) == len(nodes(before, SDPA)) > 0
    assert not nodes(after, ROTARY), "queries and keys are turned by the kernel"
    dimensions, causal = STEPS[name]
    for node in found:
        assert len(edit.info(node.args[5]).shape) == dimensions
        assert (node.args[11] is not None) == causal
        assert all(user.target is operator.getitem for user in node.users)
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


def test_golden():
    before, after, _ = fused(*FORMS["grouped"])
    check_golden("fuse_caches", f"before fuse_caches:\n{to_text(before)}\nafter:\n{to_text(after)}")
