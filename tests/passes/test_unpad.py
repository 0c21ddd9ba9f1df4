"""padded_outputs = "zero": tokens are equal to the bit, padding is zero, and what cannot be unpadded says why."""

import re

import models
import pytest
import torch
import transformers
from captured import captured, converted
from encoders import Encoder, inputs
from golden import check_golden
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fxquant as fxq
from fxquant.errors import ArtifactError, ConfigError, FxQuantWarning
from fxquant.graph import edit
from fxquant.graph.text import to_text
from fxquant.passes.narrow_attention import NarrowAttention
from fxquant.portable import portable

MASK = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 1, 0]])
MASKS = {
    "right": [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]],
    "left": [[0, 0, 0, 1, 1], [0, 1, 1, 1, 1]],
    "holes": [[1, 0, 1, 0, 1], [0, 1, 1, 0, 1]],
    "none": [[1, 1, 1, 1, 1], [1, 1, 1, 1, 1]],
    "a whole sequence": [[0, 0, 0, 0, 0], [1, 1, 1, 0, 0]],
    "everything": [[0, 0, 0], [0, 0, 0]],
    "one sequence": [[1, 1, 1, 0, 0, 0]],
    "one token": [[1]],
}


def lowered(model, mask=MASK, recipe="dynamic", **options):
    """Quantize for x86 with both choices."""
    given = inputs(mask) if isinstance(mask, torch.Tensor) else mask
    graph = model if isinstance(model, torch.fx.GraphModule) else fxq.capture(model, given)
    prepared = fxq.prepare(graph, "x86", recipe)
    qdq = fxq.convert(fxq.calibrate(prepared, [given], progress=False) if recipe == "static" else prepared)
    return both(qdq, **options)


def both(qdq, **options):
    """Lower with both choices."""
    return fxq.lower(qdq, **options), fxq.lower(qdq, padded_outputs="zero", **options)


def leaves(result):
    if isinstance(result, torch.Tensor):
        return [result]
    return list(result.values()) if isinstance(result, dict) else list(result)


def assert_zeros_or_equal(found, expected, live):
    """Tokens, or whole rows of what has no tokens, equal to the bit; zeros at padding."""
    assert found.shape == expected.shape
    if found.shape[:2] == live.shape:
        assert torch.equal(found[live], expected[live])
        assert not found[~live].any()
    else:
        whole = live.all(1)
        assert torch.equal(found[whole], expected[whole])


def assert_agree(exact, zero, given):
    live = given["attention_mask"].bool()
    for found, expected in zip(leaves(zero(**given)), leaves(exact(**given)), strict=True):
        assert_zeros_or_equal(found, expected, live)


def targets(gm):
    return [str(node.target).removesuffix(".default") for node in gm.graph.nodes if node.op == "call_function"]


@pytest.fixture(scope="module")
def source():
    return fxq.capture(Encoder(lambda hidden, mask: (hidden, hidden[:, 0])), inputs(MASK))


@pytest.fixture(scope="module")
def pair(source):
    return both(fxq.convert(fxq.prepare(source, "x86", "dynamic")))


# ── what comes out ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("mask", MASKS)
def test_tokens_to_the_bit_and_zeros(pair, mask):
    assert_agree(*pair, inputs(MASKS[mask]))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.float32], ids=str)
def test_masks_of_other_dtypes(dtype):
    given = inputs(MASK, dtype)
    assert_agree(*lowered(Encoder(layers=1), given), given)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 5), st.integers(1, 30), st.floats(0, 1), st.integers(0, 999))
def test_ragged_batches(pair, batch, length, kept, seed):
    mask = torch.rand(batch, length, generator=torch.Generator().manual_seed(seed)) < kept
    assert_agree(*pair, inputs(mask, seed=seed))


@pytest.mark.parametrize("options", [{"causal": True}, {"causal": True, "rotary": True}, {"around": 1}], ids=str)
@pytest.mark.parametrize("mask", MASKS)
def test_causal_rotary_and_windows(options, mask):
    exact, zero = _variant(**options)
    assert "fxquant.unpack_tokens" in targets(zero)
    assert_agree(exact, zero, inputs(MASKS[mask]))


_VARIANTS: dict[tuple, tuple] = {}


def _variant(**options):
    key = tuple(sorted(options.items()))
    if key not in _VARIANTS:
        _VARIANTS[key] = lowered(Encoder(layers=1, **options))
    return _VARIANTS[key]


@pytest.mark.parametrize("recipe", ["static", "weight-only"])
def test_other_recipes(recipe):
    exact, zero = lowered(Encoder(), recipe=recipe)
    assert edit.marks(zero)["unpadded"] > 10
    given = inputs(MASK)
    live = given["attention_mask"].bool()
    # The products of weight-only are torch's own, which round by the number of rows.
    slack = 1e-5 if recipe == "weight-only" else 0
    torch.testing.assert_close(zero(**given)[live], exact(**given)[live], rtol=slack, atol=slack)
    assert not zero(**given)[~live].any()


def test_no_row_of_padding_is_computed(pair):
    given = inputs(MASK)
    seen = {}

    class Watch(torch.fx.Interpreter):
        def call_function(self, target, args, kwargs):
            found = super().call_function(target, args, kwargs)
            first = found[0] if isinstance(found, list | tuple) else found
            seen.setdefault(str(target), set()).add(tuple(first.shape[:2]))
            return found

    Watch(pair[1]).run(*given.values(), enable_io_processing=False)
    tokens = int(MASK.sum())
    assert seen["fxquant.attention.default"] == {(1, tokens)}
    assert seen["fxquant.row_program.default"] == {(1, tokens)}
    assert seen["fxquant.unpack_tokens.default"] == {tuple(MASK.shape)}


def test_exact_is_the_default_and_changes_nothing(pair):
    default, _ = pair
    assert not any("token" in target for target in targets(default))
    assert edit.marks(default).get("padded_outputs") is None


def test_golden(monkeypatch):
    monkeypatch.setattr(NarrowAttention, "apply", lambda self, gm: 0)  # which depends on the CPU
    zero = lowered(Encoder(lambda hidden, mask: (hidden, hidden[:, 0]), layers=1))[1]
    check_golden("unpad", re.sub(r" \{.*\}$", "", to_text(zero), flags=re.MULTILINE))


# ── ways out of the region ────────────────────────────────────────────────────────────────────────────────────────


def pooled(hidden, mask):
    wide = mask.unsqueeze(-1).expand(hidden.size()).float()
    return (hidden * wide).sum(1) / wide.sum(1).clamp(min=1e-9)


def last_token(hidden, mask):
    places = mask.sum(1) - 1
    return hidden[torch.arange(hidden.shape[0]), places]


HEADS_SERVED = {
    "first token": (lambda hidden, mask: hidden[:, 0], "fxquant.select_token"),
    "first token, kept as one": (lambda hidden, mask: hidden[:, 0:1], "fxquant.unpack_tokens"),
    "last token": (last_token, "fxquant.unpack_tokens"),
    "mean over tokens": (pooled, "fxquant.unpack_tokens"),
    "mean by where": (
        lambda hidden, mask: torch.where(mask.bool()[..., None], hidden, 0.0).sum(1),
        "fxquant.unpack_tokens",
    ),
    "mean by masked_fill": (
        lambda hidden, mask: hidden.masked_fill(~mask.bool()[..., None], 0.0).mean(1),
        "fxquant.unpack_tokens",
    ),
    "two values a token": (lambda hidden, mask: hidden[..., :2].split(1, -1), "fxquant.unpack_tokens"),
    "a number a token": (lambda hidden, mask: hidden[..., :1].squeeze(-1), "fxquant.unpack_tokens"),
    "the best column": (lambda hidden, mask: hidden.softmax(-1).argmax(-1), "fxquant.unpack_tokens"),
    "heads before tokens": (
        lambda hidden, mask: hidden.unflatten(-1, (4, 8)).transpose(1, 2),
        "fxquant.unpack_tokens",
    ),
    "sizes": (lambda hidden, mask: hidden[:, 0] * hidden.shape[1], "fxquant.select_token"),
}
RIGHT = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0]])


@pytest.mark.parametrize("head", HEADS_SERVED)
def test_heads_that_are_served(head):
    function, way = HEADS_SERVED[head]
    exact, zero = lowered(Encoder(function, layers=1), RIGHT)
    assert way in targets(zero)
    given = inputs(RIGHT)
    live = RIGHT.bool()
    for found, expected in zip(leaves(zero(**given)), leaves(exact(**given)), strict=True):
        pair = [each.transpose(1, 2) if head == "heads before tokens" else each for each in (found, expected)]
        if pair[0].shape[:2] == live.shape:
            assert_zeros_or_equal(*pair, live)
        else:
            assert torch.equal(*pair)


def test_what_is_masked_may_go_anywhere():
    class Masked(Encoder):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(32, 32, 3, padding=1)

        def forward(self, input_ids, attention_mask):
            mask = attention_mask.to(torch.bool)
            hidden = self.layers[0](self.words(input_ids), mask) * attention_mask[..., None]
            return self.layers[1](self.conv(hidden.transpose(1, 2)).transpose(1, 2), mask)

    exact, zero = lowered(Masked().eval())
    assert targets(zero).count("fxquant.pack_tokens") == 2
    assert_agree(exact, zero, inputs(MASK))


def fixed(model, mask):
    """Lower a graph for the sizes of one mask with both choices."""
    graph = fxq.capture(model.eval(), inputs(mask), dynamic=False)
    return both(fxq.convert(fxq.prepare(graph, "x86", "dynamic")))


@pytest.mark.parametrize("mask", [MASK, MASK[1:2], MASK[:, :1]], ids=lambda mask: str(list(mask.shape)))
def test_graphs_of_fixed_sizes(mask):
    exact, zero = fixed(Encoder(pooled, layers=1), mask)
    assert edit.marks(zero)["unpadded"] > 5
    for other in (mask, torch.ones_like(mask), torch.zeros_like(mask)):
        assert torch.equal(zero(**inputs(other)), exact(**inputs(other)))


def test_a_first_token_that_is_padding_reads_zeros(pair):
    given = inputs(MASKS["left"])
    assert not pair[1](**given)[1].any()
    assert pair[0](**given)[1].any()


def test_hidden_states_of_every_layer():
    class Deep(Encoder):
        def forward(self, input_ids, attention_mask):
            mask = attention_mask.to(torch.bool)
            states = [self.norm(self.words(input_ids))]
            for layer in self.layers:
                states.append(layer(states[-1], mask))
            return tuple(states)

    exact, zero = lowered(Deep())
    assert targets(zero).count("fxquant.unpack_tokens") == 3
    assert_agree(exact, zero, inputs(MASK))


class Cross(Encoder):
    """A second sequence attends to the encoded one."""

    def forward(self, input_ids, attention_mask, other):
        mask = attention_mask.to(torch.bool)
        hidden = self.layers[0](self.words(input_ids), mask)
        q = self.pool(self.words(other))
        k, v = self.layers[1].out(hidden), self.layers[1].qkv(hidden)[..., :32]
        return torch.ops.fxquant.attention(q, k, v, mask, None, 4, 4, 0.3, False)


@pytest.mark.parametrize("length", [4, 7])
def test_attention_of_another_sequence_is_served_with_padding(length):
    other = torch.randint(1, 50, (3, length), generator=torch.Generator().manual_seed(3))
    given = {**inputs(MASK), "other": other}
    exact, zero = lowered(Cross(), given)
    attentions = [node for node in zero.graph.nodes if node.target is torch.ops.fxquant.attention.default]
    assert [node.args[4] is not None for node in attentions] == [True, False]
    assert torch.equal(zero(**given), exact(**given))


def test_two_encoders_with_masks_of_their_own():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = Encoder(layers=1), Encoder(layers=1)

        def forward(self, input_ids, attention_mask, ids, other):
            return self.one(input_ids, attention_mask), self.two(ids, other)

    second = inputs([[1, 1, 1, 0], [0, 1, 1, 1]], seed=5)
    given = {**inputs(MASK), "ids": second["input_ids"], "other": second["attention_mask"]}
    exact, zero = lowered(Two().eval(), given)
    assert targets(zero).count("fxquant.token_index") == 2
    for found, expected, mask in zip(zero(**given), exact(**given), (MASK, second["attention_mask"]), strict=True):
        assert_zeros_or_equal(found, expected, mask.bool())


def test_what_stands_before_attention_may_meet_tokens():
    class Smoothed(Encoder):
        def forward(self, input_ids, attention_mask):
            words = self.words(input_ids)
            x = self.norm(words - words.mean(1, keepdim=True))
            return self.layers[0](x, attention_mask.to(torch.bool))

    exact, zero = lowered(Smoothed())
    assert "fxquant.pack_tokens" in targets(zero)
    assert_agree(exact, zero, inputs(MASK))


def test_positions_without_a_batch_axis():
    class Sinusoidal(Encoder):
        def forward(self, input_ids, attention_mask):
            x = self.words(input_ids) + self.places.weight[: input_ids.shape[1]] + self.pool.bias
            return self.layers[0](x, attention_mask.to(torch.bool))

    assert_agree(*lowered(Sinusoidal()), inputs(MASK))


# ── what is refused ───────────────────────────────────────────────────────────────────────────────────────────────


class Biased(Encoder):
    def forward(self, input_ids, attention_mask):
        places = torch.arange(input_ids.shape[1])
        near = (places[:, None] - places).float()[None, None]
        return self.layers[0](self.words(input_ids), near.masked_fill(attention_mask[:, None, None] == 0, -1e9))


class Unmasked(Encoder):
    def forward(self, input_ids, attention_mask):
        return self.layers[0](self.words(input_ids), None) * attention_mask[..., None]


class Convolved(Encoder):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(32, 32, 3, padding=1)

    def forward(self, input_ids, attention_mask):
        mask = attention_mask.to(torch.bool)
        hidden = self.layers[0](self.words(input_ids), mask)
        return self.layers[1](self.conv(hidden.transpose(1, 2)).transpose(1, 2), mask)


class MaskedBefore(Convolved):
    """What the convolution reads was masked, and then got a bias."""

    def forward(self, input_ids, attention_mask):
        mask = attention_mask.to(torch.bool)
        hidden = self.pool(self.layers[0](self.words(input_ids), mask) * attention_mask[..., None])
        return self.layers[1](self.conv(hidden.transpose(1, 2)).transpose(1, 2), mask)


def maximum(hidden, mask):
    return hidden.masked_fill(~mask.bool()[..., None], -1e9).amax(1)


NOT_SERVED = {
    "mean over padding, too": (
        Encoder(lambda hidden, mask: hidden.mean(1), layers=1),
        "aten.mean.dim would read padding",
    ),
    "maximum": (Encoder(maximum, layers=1), "aten.amax.default would read padding"),
    "convolution": (Convolved(), "fxquant.packed_conv_dynamic_int8.default at conv would read padding"),
    "convolution of what was masked": (
        MaskedBefore(),
        "fxquant.packed_conv_dynamic_int8.default at conv would read padding",
    ),
    "positions together": (
        Encoder(lambda hidden, mask: hidden[:, 1:], layers=1),
        "aten.slice.Tensor would read padding",
    ),
    "sequences together": (Encoder(lambda hidden, mask: hidden[0], layers=1), "aten.select.int would read padding"),
    "a relative bias": (Biased(), r"no attention has a mask \(batch, positions\) of padding: %\w+ adds other numbers"),
    "no mask": (Unmasked(), r"no attention has a mask \(batch, positions\)"),
}


@pytest.mark.parametrize("case", NOT_SERVED)
def test_what_cannot_be_unpadded_is_told_and_exact(case):
    model, reason = NOT_SERVED[case]
    with pytest.warns(FxQuantWarning, match=f'the model runs on padding as with "exact": {reason}'):
        exact, zero = lowered(model.eval())
    assert targets(zero) == targets(exact)
    assert "unpadded" not in edit.marks(zero)
    assert re.search(reason, edit.marks(zero)["padded"][0])
    given = inputs(MASK)
    assert torch.equal(zero(**given), exact(**given))


def crossed(hidden, mask):
    masked = hidden * mask[..., None]
    return masked * masked.transpose(1, 2)


FIXED = {
    "one place": (Encoder(layers=1), [[1]], "the mask .* is of one place alone"),
    "one token a sequence, repeated": (
        Encoder(lambda hidden, mask: hidden.expand(-1, 5, -1), layers=1),
        [[1], [0]],
        "aten.expand.default would read padding",
    ),
    "tokens along two axes": (Encoder(crossed, layers=1), [[1] * 20 + [0] * 12] * 2, "would read padding"),
}


@pytest.mark.parametrize("case", FIXED)
def test_what_cannot_be_unpadded_of_fixed_sizes(case):
    model, mask, reason = FIXED[case]
    with pytest.warns(FxQuantWarning, match=f'the model runs on padding as with "exact": .*{reason}'):
        exact, zero = fixed(model, torch.tensor(mask))
    assert torch.equal(zero(**inputs(mask)), exact(**inputs(mask)))


def test_one_attention_of_all_positions_is_enough_to_refuse():
    class Mixed(Encoder):
        def forward(self, input_ids, attention_mask):
            return self.layers[1](self.layers[0](self.words(input_ids), attention_mask.to(torch.bool)), None)

    with pytest.warns(FxQuantWarning, match="fxquant.attention.default at layers.1 would read padding"):
        assert "unpadded" not in edit.marks(lowered(Mixed())[1])


def test_a_backend_without_the_pass_is_told():
    with pytest.warns(FxQuantWarning, match="the backend 'reference' lists no pass 'unpad'"):
        fxq.quantize(Encoder(layers=1), inputs(MASK), backend="reference", padded_outputs="zero")


# ── where the choice is made and kept ─────────────────────────────────────────────────────────────────────────────


def test_a_choice_that_there_is_none_of(pair):
    for call in (
        lambda: fxq.lower(portable(pair[0]), padded_outputs="zeros"),
        lambda: fxq.quantize(Encoder(), inputs(MASK), padded_outputs="zeros"),
    ):
        with pytest.raises(ConfigError, match="padded_outputs = 'zeros' is no known choice: did you mean 'zero'"):
            call()


def test_artifacts_keep_the_choice(pair, tmp_path):
    given = inputs(MASK)
    exact, zero = pair
    saved = fxq.save(zero, tmp_path / "zero")
    assert torch.equal(fxq.load(saved)(**given)[0], zero(**given)[0])
    assert torch.equal(fxq.load(saved, padded_outputs="exact")(**given)[0], exact(**given)[0])
    assert torch.equal(fxq.lower(fxq.load(saved, lower=False))(**given)[0], zero(**given)[0])
    other = fxq.save(exact, tmp_path / "exact")
    assert torch.equal(fxq.load(other)(**given)[0], exact(**given)[0])
    assert torch.equal(fxq.load(other, padded_outputs="zero")(**given)[0], zero(**given)[0])
    with pytest.raises(ArtifactError, match="no known choice"):
        fxq.load(other, padded_outputs="none")


def test_the_ledger_has_the_same_products():
    graphs = both(converted("bert"))
    exact, zero = (
        [
            (row.op, row.module_path, row.flops, row.dtype, row.kernel, row.code)
            for row in fxq.ledger(gm).rows
            if row.family or row.quantized
        ]
        for gm in graphs
    )
    assert exact == zero
    assert [row[4] for row in zero if "attention" in row[0]] == ["fxquant.attention"] * 2
    assert fxq.ledger(graphs[0]).coverage == fxq.ledger(graphs[1]).coverage


def test_comparison_still_sees_every_layer(source, pair):
    rows = [[row.module_path for row in fxq.compare(source, gm, [inputs(MASK)]).rows] for gm in pair]
    assert sorted(rows[0]) == sorted(rows[1])


def test_exports_with_any_number_of_tokens(pair):
    batch, length = (torch.export.Dim(name, min=2, max=30) for name in ("batch", "length"))
    shapes = {name: {0: batch, 1: length} for name in ("input_ids", "attention_mask")}
    program = torch.export.export(pair[1], (), inputs(MASK), dynamic_shapes=shapes, strict=False)
    again = program.module()
    for mask in (MASKS["holes"], MASKS["left"], MASKS["none"], MASKS["a whole sequence"], MASKS["everything"], MASK):
        given = inputs(mask)
        for found, expected in zip(again(**given), pair[1](**given), strict=True):
            assert torch.equal(found, expected)


def test_compiles_with_breaks_or_dynamic_shapes(pair):
    import torch._dynamo

    expected = pair[1](**inputs(MASK))
    for dynamic in (False, True):
        torch._dynamo.reset()
        with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=dynamic):
            compiled = torch.compile(pair[1], backend="aot_eager", fullgraph=dynamic)
            for found, wanted in zip(compiled(**inputs(MASK)), expected, strict=True):
                assert torch.equal(found, wanted)
    torch._dynamo.reset()


def test_same_bits_with_one_and_two_threads(pair):
    given = inputs(torch.rand(5, 30, generator=torch.Generator().manual_seed(0)) > 0.4)
    found = []
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(pair[1](**given)[0])
    torch.set_num_threads(before)
    assert torch.equal(*found)


# ── models of transformers ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["bert", "bert-masked-lm", "roberta", "gpt2", "llama"])
def test_models(name):
    given = captured(name)[1]
    exact, zero = both(converted(name))
    attentions = [node for node in zero.graph.nodes if node.target is torch.ops.fxquant.attention.default]
    assert len(attentions) == captured(name)[0].config.num_hidden_layers
    assert all(node.args[3] is None and node.args[4] is not None for node in attentions), "packed, with offsets"
    for mask in (given["attention_mask"], RIGHT, MASK):
        assert_agree(exact, zero, {"input_ids": models.ids(*mask.shape), "attention_mask": mask})


_MODERN = {"global_attn_every_n_layers": 2, "local_attention": 4, "bos_token_id": 1, "eos_token_id": 2}
ROTARY = {
    "roformer": (transformers.RoFormerModel, transformers.RoFormerConfig, {"num_hidden_layers": 1}),
    "modernbert": (
        transformers.ModernBertModel,
        transformers.ModernBertConfig,
        {**_MODERN, "cls_token_id": 1, "sep_token_id": 2, "pad_token_id": 0},
    ),
}


@pytest.mark.parametrize("name", ROTARY)
def test_models_that_turn_queries_and_keys(name):
    """ModernBERT's second layer sees two tokens on each side, counted with the padding between them."""
    build, config, changes = ROTARY[name]
    exact, zero = lowered(models._random(build, config(**models._ENCODER | changes)), models.encoder_inputs())
    assert "fxquant.unpack_tokens" in targets(zero)
    for mask in (RIGHT, MASK):
        assert_agree(exact, zero, {"input_ids": models.ids(*mask.shape), "attention_mask": mask})


class Embedder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = models.bert()[0]

    def forward(self, input_ids, token_type_ids, attention_mask):
        hidden = self.encoder(input_ids, attention_mask, token_type_ids).last_hidden_state
        return nn.functional.normalize(pooled(hidden, attention_mask), dim=-1)


@pytest.fixture(scope="module")
def embedder():
    """A sentence encoder's graph and its inputs."""
    given = {**inputs(MASK), "token_type_ids": torch.zeros_like(MASK)}
    given["token_type_ids"][:, 3:] = 1
    return fxq.capture(Embedder().eval(), given), given


@pytest.mark.parametrize("recipe", ["dynamic", "static"])
def test_a_sentence_encoder_with_its_pooling(embedder, recipe):
    graph, given = embedder
    exact, zero = lowered(graph, given, recipe)
    assert edit.marks(zero)["unpadded"] > 20
    assert torch.equal(zero(**given), exact(**given))
    alone = {name: value[1:2, :3] for name, value in given.items()}
    assert torch.equal(zero(**alone)[0], zero(**given)[1]), "padding, and others in the batch, change no bit"


@pytest.mark.parametrize("name", ["t5-encoder", "t5"])
def test_models_with_relative_positions_are_told(name):
    given = captured(name)[1]
    with pytest.warns(FxQuantWarning, match=r"no attention has a mask \(batch, positions\) of padding: %where"):
        exact, zero = both(converted(name))
    assert_agree_whole(exact, zero, given)


def assert_agree_whole(exact, zero, given):
    for found, expected in zip(leaves(zero(**given)), leaves(exact(**given)), strict=True):
        assert torch.equal(found, expected)


def test_a_model_that_is_given_no_mask():
    model, given, _ = captured("bert")
    with pytest.warns(FxQuantWarning, match=r"no attention has a mask \(batch, positions\) of padding"):
        exact, zero = lowered(model, {"input_ids": given["input_ids"]})
    assert targets(zero) == targets(exact)
    assert_agree_whole(exact, zero, {"input_ids": given["input_ids"]})


def test_padding_that_is_marked_by_true():
    class Inverted(Encoder):
        def forward(self, input_ids, attention_mask):
            padding = attention_mask == 0
            keep = torch.logical_not(padding)
            hidden = self.layers[0](self.words(input_ids), keep)
            return hidden.masked_fill(padding[..., None], 0.0).sum(1)

    exact, zero = lowered(Inverted())
    assert edit.marks(zero)["unpadded"] > 5
    assert torch.equal(zero(**inputs(MASK)), exact(**inputs(MASK)))
