import captured
import pytest
import torch
import transformers
from generative import ENCODER_DECODERS, encoder_decoder, generating, seq2seq_inputs

import fxquant as fxq
from fxquant.errors import CaptureError, InputError


def source_of(inputs):
    return {name: tensor for name, tensor in inputs.items() if name != "decoder_input_ids"}


@pytest.fixture(scope="module")
def t5():
    model = encoder_decoder("t5")
    return model, captured.program("t5")


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_tokens_are_those_of_the_model(name):
    """Greedy and by beams, with padding in the source."""
    model, inputs = encoder_decoder(name), seq2seq_inputs(name)
    program = captured.program(name)
    assert list(program.graphs) == ["encoder", "cross", "step"]
    for options in ({}, {"num_beams": 3}):
        expected = generating(model.generate, source_of(inputs), **options)
        assert torch.equal(generating(program.generate, source_of(inputs), **options), expected), options
    with torch.no_grad():
        expected = model(**inputs)
    torch.testing.assert_close(program(**inputs).logits, expected.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [{"do_sample": True, "top_k": 20}, {"use_cache": False}, {"num_beams": 2, "num_return_sequences": 2}],
    ids=["sampling", "no-cache", "beams"],
)
def test_every_way_to_generate(t5, options):
    model, program = t5
    source = source_of(seq2seq_inputs("t5", batch=1, sequence=5))
    expected = generating(model.generate, source, **options)
    assert torch.equal(generating(program.generate, source, **options), expected)


def test_each_graph_reads_tensors_of_its_own(t5):
    """Weights of the cross-attention's keys and values are read once for a source, not for each token."""
    names = {name: set(table) for name, table in t5[1].names().items()}
    assert not names["cross"] & names["step"]
    weights = {name for name in names["cross"] if name.endswith(".weight")}
    assert weights == {f"decoder.block.{i}.layer.1.EncDecAttention.{kind}.weight" for i in (0, 1) for kind in "kv"}


def test_int8_is_close_and_loaded_generates_the_same(t5, tmp_path):
    model, program = t5
    quantized = fxq.quantize(program, None, recipe="dynamic")
    inputs = seq2seq_inputs("t5", batch=4, sequence=20)
    assert fxq.ledger(quantized).unintended == ()
    with torch.no_grad():
        expected, found = model(**inputs).logits, quantized(**inputs).logits
    assert 20 * torch.log10(expected.norm() / (found - expected).norm()) > 30
    fxq.save(quantized, tmp_path / "artifact")
    again = fxq.load(tmp_path / "artifact")
    assert type(again.generator) is transformers.T5ForConditionalGeneration
    tokens = generating(quantized.generate, source_of(inputs), num_beams=2)
    assert torch.equal(generating(again.generate, source_of(inputs), num_beams=2), tokens)


def test_calls_as_the_model(t5):
    model, program = t5
    inputs = seq2seq_inputs("t5")
    with torch.no_grad():
        outputs = model.encoder(**source_of(inputs))
        expected = model(**inputs)
        found = program(encoder_outputs=outputs, **inputs)
    assert type(found) is type(expected) and list(found) == ["logits", "encoder_last_hidden_state"]
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-5)
    assert type(program.generator.get_encoder()(**source_of(inputs))) is type(outputs)


def test_a_source_alone_is_an_example():
    """The target starts as generation does; the model must state how."""
    model, source = encoder_decoder("marian"), source_of(seq2seq_inputs("marian"))
    program = fxq.capture_generation(model, {"input_ids": source["input_ids"]})
    assert torch.equal(generating(program.generate, source), generating(model.generate, source))
    model.generation_config.decoder_start_token_id = model.generation_config.bos_token_id = None
    with pytest.raises(
        CaptureError, match="holds no 'decoder_input_ids', and the model states no token to start with:"
    ):
        fxq.capture_generation(model, source)


def test_what_the_graphs_do_not_take(t5):
    model, program = t5
    inputs = seq2seq_inputs("t5")
    with pytest.raises(CaptureError, match="example_inputs holds no 'input_ids'; generation takes 'input_ids', 'atten"):
        fxq.capture_generation(model, {"decoder_input_ids": inputs["decoder_input_ids"]})
    with pytest.raises(InputError, match="decoder_input_ids are a NoneType: expected a tensor of token ids"):
        program(**source_of(inputs))
    with pytest.raises(InputError, match="input_ids are a NoneType: expected a tensor, as in capture"):
        program(decoder_input_ids=inputs["decoder_input_ids"])
    with pytest.raises(InputError, match="past_key_values is a DynamicCache: leave it out, or give"):
        program(**inputs, past_key_values=transformers.DynamicCache())
