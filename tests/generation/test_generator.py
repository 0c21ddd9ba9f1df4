import copy

import captured
import pytest
import torch
import transformers
from generative import decoder, generating, prompts

import fxquant as fxq
from fxquant.errors import ConfigError, InputError
from fxquant.graph import edit


@pytest.fixture(scope="module")
def llama():
    return decoder("llama"), captured.program("llama")


@pytest.fixture(scope="module")
def quantized(llama):
    return fxq.quantize(llama[1], None, recipe="dynamic")


class Collected(transformers.generation.streamers.BaseStreamer):
    def __init__(self):
        self.tokens = []

    def put(self, value):
        self.tokens.append(value.flatten().tolist())

    def end(self):
        self.tokens.append("end")


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": True, "top_k": 20, "temperature": 0.7},
        {"do_sample": True, "num_beams": 2, "num_return_sequences": 2},
        {"use_cache": False},
        {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
        {"prompt_lookup_num_tokens": 2},
    ],
    ids=["sampling", "beam-sampling", "no-cache", "processors", "lookup"],
)
def test_every_way_to_generate(llama, options):
    model, program = llama
    inputs = prompts(1) if "prompt_lookup_num_tokens" in options else prompts()
    expected = generating(model.generate, inputs, **options)
    assert torch.equal(generating(program.generate, inputs, **options), expected)


def test_streaming(llama):
    model, program = llama
    expected, found = Collected(), Collected()
    generating(model.generate, prompts(1), streamer=expected)
    generating(program.generate, prompts(1), streamer=found)
    assert found.tokens == expected.tokens and found.tokens[-1] == "end"


def test_int8_has_logits_close_to_the_models(llama, quantized):
    model, inputs = llama[0], prompts(4, 24)
    assert isinstance(quantized, fxq.Program) and fxq.ledger(quantized).unintended == ()
    found = quantized.generate(**inputs, max_new_tokens=6, output_logits=True, return_dict_in_generate=True)
    mask = torch.cat([inputs["attention_mask"], torch.ones(4, 6, dtype=torch.long)], 1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        expected = model(input_ids=found.sequences, attention_mask=mask, position_ids=positions).logits[:, -7:-1]
    error = torch.stack(found.logits, 1) - expected
    assert 20 * torch.log10(expected.norm() / error.norm()) > 30


def test_loaded_program_generates_the_same(quantized, tmp_path):
    fxq.save(quantized, tmp_path / "artifact")
    again = fxq.load(tmp_path / "artifact")
    assert type(again.generator) is transformers.LlamaForCausalLM
    assert sum(tensor.numel() for tensor in again.generator.parameters()) == 0
    for options in ({}, {"num_beams": 2}):
        expected = generating(quantized.generate, prompts(), **options)
        assert torch.equal(generating(again.generate, prompts(), **options), expected)
    assert again.generator.generation_config.eos_token_id == 2


def test_continuing_from_a_cache(llama):
    model, program = llama
    inputs = prompts(1, 12)
    cache = transformers.DynamicCache()
    program(inputs["input_ids"][:, :7], past_key_values=cache)
    assert cache.get_seq_length() == 7
    found = generating(program.generate, inputs, past_key_values=cache)
    assert torch.equal(found, generating(model.generate, inputs))


def test_copies_call_their_own_graphs(llama):
    program = llama[1]
    other = copy.deepcopy(program)
    expected = generating(program.generate, prompts())
    with torch.no_grad():
        for tensor in other.tensors().values():
            tensor.zero_()
    assert not torch.equal(generating(other.generate, prompts()), expected)
    assert torch.equal(generating(program.generate, prompts()), expected)


def test_calls_as_the_model(llama):
    model, program = llama
    inputs = prompts()
    with torch.no_grad():
        expected = model(**inputs, logits_to_keep=2)
    found = program(inputs["input_ids"], inputs["attention_mask"], logits_to_keep=2)
    assert type(found) is type(expected) and found.logits.shape == (2, 2, 64)
    torch.testing.assert_close(found.logits, expected.logits)
    assert found.past_key_values is None
    assert program(**inputs, use_cache=True).past_key_values.get_seq_length() == 9


def test_what_steps_do_not_take(llama):
    program, inputs = llama[1], prompts()
    with pytest.raises(InputError, match="past_key_values is a StaticCache: leave out"):
        program.generate(**inputs, max_new_tokens=2, cache_implementation="static")
    with pytest.raises(InputError, match="unexpected argument 'output_attentions': the steps of the program take inp"):
        program.generate(**inputs, max_new_tokens=2, output_attentions=True, return_dict_in_generate=True)
    with pytest.raises(InputError, match="input_ids are a NoneType: expected a tensor of token ids"):
        program(inputs_embeds=torch.ones(1, 2, 32))
    with pytest.raises(InputError, match=r"attention_mask is a tensor of shape \(2, 9\): expected .* shape \(2, 1\)"):
        program(inputs["input_ids"][:, -1:], inputs["attention_mask"])
    with pytest.raises(InputError, match="past_key_values has a filled DynamicSlidingWindowLayer: give"):
        cache = transformers.DynamicCache(config=transformers.MistralConfig(sliding_window=4, num_hidden_layers=2))
        for layer in range(2):
            cache.update(torch.ones(1, 2, 3, 8), torch.ones(1, 2, 3, 8), layer)
        program(inputs["input_ids"][:1], past_key_values=cache)


def test_programs_and_artifacts_that_do_not_generate(llama, tmp_path):
    gm = fxq.capture(torch.nn.Linear(2, 2), torch.ones(1, 2))
    with pytest.raises(ConfigError, match="a program of forward does not generate: quantize a transformers model"):
        fxq.Program({"forward": gm}).generate()

    own = llama[1].map(edit.clone)
    edit.mark(own.graph("step"), config={**edit.marks(own.graph("step"))["config"], "architectures": ["Own"]})
    assert torch.equal(generating(own.generate, prompts()), generating(llama[0].generate, prompts()))
    fxq.save(own, tmp_path / "own")
    with pytest.raises(ConfigError, match="the program was made from a 'Own', which transformers does not have"):
        fxq.load(tmp_path / "own").generate(**prompts())
    attached = fxq.load(tmp_path / "own").attach(llama[0])
    assert torch.equal(generating(attached.generate, prompts()), generating(llama[0].generate, prompts()))
