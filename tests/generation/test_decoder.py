import captured
import pytest
import torch
from generative import DECODERS, decoder, generating, prompts

import fxquant as fxq
from fxquant.errors import CaptureError
from fxquant.graph import guards
from fxquant.graph.signature import signature_of


@pytest.mark.parametrize("name", DECODERS)
def test_tokens_are_those_of_the_model(name):
    """Greedy and by beams, with left padding; prompt and tokens go beyond the window of those that have one."""
    model, inputs = decoder(name), prompts()
    program = captured.program(name)
    for options in ({}, {"num_beams": 3, "num_return_sequences": 2}):
        expected = generating(model.generate, inputs, **options)
        assert torch.equal(generating(program.generate, inputs, **options), expected), options
    with torch.no_grad():
        torch.testing.assert_close(program(**inputs).logits, model(**inputs).logits, rtol=1e-4, atol=1e-5)


def test_lengths_of_all_keys_are_one_symbol():
    """Each call would else look at a condition for each layer."""
    signature = signature_of(captured.program("llama").graph("step"))
    lengths = [leaf.shape[2] for leaf in signature.leaves if leaf.name.startswith("key_")]
    assert len(lengths) > 1
    assert len(set(lengths)) == 1
    text = " ".join(guards.text(tree, [leaf.name for leaf in signature.leaves]) for tree in signature.conditions)
    assert "key_1" not in text


def test_example_of_one_token_gives_every_size():
    model = decoder("gpt2")
    program = fxq.capture_generation(model, (torch.tensor([[5]]),))
    for batch, length in ((1, 1), (1, 7), (5, 2)):
        inputs = prompts(batch, length + 3)
        assert torch.equal(generating(program.generate, inputs), generating(model.generate, inputs))


def test_models_and_examples_that_have_no_step():
    model, inputs = decoder("gpt2"), prompts()
    with pytest.raises(CaptureError, match="a Linear does not generate with a cache: capture it with"):
        fxq.capture_generation(torch.nn.Linear(2, 2), torch.ones(1, 2))
    with pytest.raises(CaptureError, match="example_inputs holds 'token_type_ids'; steps of generation take 'input_id"):
        fxq.capture_generation(model, {**inputs, "token_type_ids": torch.zeros_like(inputs["input_ids"])})


def test_model_that_changes_with_its_cache_is_refused():
    """A step that differs from the model is found on the example."""
    model, inputs = decoder("gpt2"), prompts()
    own = type(model)

    class Wrong(own):
        def forward(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, **kwargs):
            output = super().forward(input_ids, past_key_values, attention_mask, None, position_ids, **kwargs)
            if past_key_values is not None:
                output.logits = output.logits + 1
            return output

    model.__class__ = Wrong
    with pytest.raises(CaptureError, match="the captured step computes something else than the model: logits are off"):
        fxq.capture_generation(model, inputs)
