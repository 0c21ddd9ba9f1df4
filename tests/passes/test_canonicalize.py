"""The canonical form of whole models: the same outputs, one form of everything, nothing left over."""

import models
import pytest
import torch
import transformers
from canonical import Holding, assert_same
from golden import check_golden
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from fxquant.graph import edit
from fxquant.graph.capture import capture
from fxquant.graph.text import to_text
from fxquant.passes.canonical_facts import is_mutating
from fxquant.passes.canonicalize import CANONICAL, canonicalize

aten = torch.ops.aten

GONE = ["addmm", "mm", "t", "numpy_T", "view", "_unsafe_view", "dropout", "alias", "detach", "detach_", "clone"]
GONE += ["contiguous", "lift_fresh_copy", "type_as", "_to_copy", "pow", "rsqrt", "sigmoid", "_assert_tensor_metadata"]
SMALL = {"vocab_size": 64, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
SMALL |= {"intermediate_size": 12, "max_position_embeddings": 64}
GPT2 = {
    "vocab_size": 64,
    "n_embd": 8,
    "n_layer": 1,
    "n_head": 2,
    "n_positions": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
T5 = {"vocab_size": 64, "d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 1, "num_heads": 2}
GATED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
ONE_LAYER = {
    "bert": lambda: transformers.BertModel(transformers.BertConfig(**SMALL)),
    "gpt2": lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2)),
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, num_key_value_heads=1)),
    "t5": lambda: transformers.T5ForConditionalGeneration(transformers.T5Config(**T5)),
    "t5-gated": lambda: transformers.T5ForConditionalGeneration(transformers.T5Config(**T5, **GATED)),
}


def example(name):
    """Return a model of one layer, hidden 8, and its inputs; of others the one of `models`."""
    if name not in ONE_LAYER:
        return models.EVERY[name]()
    inputs = models.seq2seq_inputs() if name.startswith("t5") else models.encoder_inputs()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ONE_LAYER[name]().eval(), inputs


def count(gm, name):
    return sum(str(node.target).startswith(f"aten.{name}.") for node in gm.graph.nodes)


EXPECTED = {
    # name: linears, layer norms, RMS norms, GELUs, SiLUs, ReLUs, and whether the outputs are the same bits
    "bert": (6 + 1, 2 + 1, 0, 1, 0, 0, True),
    "roberta": (6 + 1, 2 + 1, 0, 1, 0, 0, True),
    "distilbert": (6, 2 + 1, 0, 1, 0, 0, True),
    "gpt2": (4 + 1, 2 + 1, 0, 1, 0, 0, False),
    "llama": (7 + 1, 0, 2 + 1, 0, 1, 0, True),
    "t5": (6 + 10 + 1, 0, 3 + 4, 0, 0, 2, True),
    "t5-gated": (7 + 11 + 1, 0, 3 + 4, 2, 0, 0, False),
}


@pytest.fixture(scope="module")
def captured():
    """Return a function that captures a model once for all tests here."""
    kept = {}

    def get(name):
        if name not in kept:
            model, inputs = example(name)
            kept[name] = (model, inputs, capture(model, inputs))
        return kept[name]

    return get


@pytest.mark.parametrize("name", EXPECTED)
def test_models(name, captured):
    model, inputs, gm = captured(name)
    text = to_text(gm)
    changed = canonicalize(gm)
    *counts, exact = EXPECTED[name]
    assert to_text(gm) == text, "the graph given is left as it was"
    assert [count(changed, op) for op in ("linear", "layer_norm", "rms_norm", "gelu", "silu", "relu")] == counts
    assert not {op for op in GONE if count(changed, op)}
    assert not any(is_mutating(node) for node in changed.graph.nodes)
    with torch.no_grad():
        expected, found = models.tensors(model(**inputs)), models.tensors(changed(**inputs))
    assert len(expected) == len(found) > 0
    for left, right in zip(expected, found, strict=True):
        tolerance = 0 if exact else 1e-6 * float(left.abs().max())
        torch.testing.assert_close(right, left, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5"])
def test_other_sizes_than_the_example(name, captured):
    model, _, gm = captured(name)
    changed = canonicalize(gm)
    make = models.seq2seq_inputs if name == "t5" else models.encoder_inputs
    for batch, sequence in ((1, 7), (3, 20), (2, 1)):
        inputs = make(batch, sequence)
        with torch.no_grad():
            for left, right in zip(models.tensors(model(**inputs)), models.tensors(changed(**inputs)), strict=True):
                torch.testing.assert_close(right, left, rtol=0, atol=1e-6 * float(left.abs().max()))


@pytest.mark.parametrize("name", [*EXPECTED, "convnet", "mlp"])
def test_a_canonical_graph_stays_as_it_is(name, captured):
    changed = canonicalize(captured(name)[2])
    again = canonicalize(changed)
    assert to_text(again) == to_text(changed)


@pytest.mark.parametrize("name", EXPECTED)
def test_every_weight_is_a_constant_with_a_path_and_a_type(name, captured):
    changed = canonicalize(captured(name)[2])
    for node in changed.graph.nodes:
        if node.target is aten.linear.default:
            assert edit.is_constant(node.args[1]) and edit.get_tensor(changed, node.args[1]).is_contiguous()
            assert edit.path_of(node)
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
            assert "val" in node.meta


def test_gpt2_holds_each_projection_once(captured):
    changed = canonicalize(captured("gpt2")[2])
    names = set(changed.state_dict())
    assert "transformer.h.0.mlp.c_fc.weight_t" in names and "transformer.h.0.mlp.c_fc.weight" not in names
    assert changed.get_buffer("transformer.h.0.mlp.c_fc.weight_t").shape == (32, 8)


def test_the_passes_come_in_the_order_they_need():
    names = [each.name for each in CANONICAL.passes]
    for position, each in enumerate(CANONICAL.passes):
        assert set(each.after) <= set(names[:position]), f"{each.name} names a pass that is not before it"


STEPS = {
    "dropout": lambda x, w, b: functional.dropout(x, 0.5, training=False),
    "clone": lambda x, w, b: x.clone(),
    "cast": lambda x, w, b: x.to(torch.float32),
    "double-and-back": lambda x, w, b: x.double().float(),
    "inplace-relu": lambda x, w, b: functional.relu(x * 2, inplace=True),
    "two-transposes": lambda x, w, b: x.transpose(0, 1).contiguous().transpose(0, 1),
    "flattened-product": lambda x, w, b: torch.addmm(b, x.reshape(-1, 6), w).view(x.shape),
    "product-and-bias": lambda x, w, b: b + x @ w.t(),
    "residual": lambda x, w, b: x + torch.tanh(x @ w),
    "norm": lambda x, w, b: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * (1.0 + b),
    "silu": lambda x, w, b: x * torch.sigmoid(x),
    "twice-the-same": lambda x, w, b: (x - x.mean(-1, True)) * (x - x.mean(-1, True)),
}


@settings(max_examples=16, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=6))
def test_any_chain_of_rewritten_things_computes_the_same(names):
    def function(x, w, b):
        for name in names:
            x = STEPS[name](x, w, b)
        return torch.neg(x)

    generator = torch.Generator().manual_seed(0)
    x, w, b = (torch.randn(size, generator=generator) for size in ((2, 3, 6), (6, 6), (6,)))
    gm = capture(Holding(function, w=w / 3, b=b).eval(), (x,))
    changed = canonicalize(gm)
    assert not {op for op in GONE if count(changed, op)}
    assert_same(gm, changed, x, units=32)
    assert to_text(canonicalize(changed)) == to_text(changed)


@pytest.mark.parametrize("name", ONE_LAYER)
def test_golden(name, captured):
    check_golden(f"canonical_{name}", to_text(canonicalize(captured(name)[2])))
