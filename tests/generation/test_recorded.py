"""Decoders whose single tokens are replayed on caches of a fixed length, with a recorder that runs on the CPU."""

import copy
from functools import cache

import captured
import pytest
import torch
from generative import generating, prompts
from recordings import Recordings

import fxquant as fxq
from fxquant.errors import ConfigError, FxQuantError
from fxquant.generation.recorded import RecordedSteps
from fxquant.kernels.cuda.graphs import CudaGraphs

PLACES = 12  # for fewer tokens than are generated, so that caches grow


@cache
def lowered(name):
    return fxq.quantize(captured.program(name), None, backend="cuda", recipe="weight-only")


def recorded(name, recordings, most=4):
    def steps(step):
        return RecordedSteps(step, lambda module: CudaGraphs(module, 1, "copied", recordings), PLACES, most)

    return lowered(name).with_steps(steps)


def call(program, ids, past=None):
    with torch.no_grad():
        found = program(input_ids=ids, past_key_values=past, use_cache=True)
    return found.logits, found.past_key_values


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_tokens_are_those_of_the_program(name):
    """Greedy and by beams, with left padding, beyond a window of some layers and the first length of the caches."""
    recordings = Recordings()
    program = recorded(name, recordings)
    for options in ({}, {"num_beams": 3, "num_return_sequences": 2}):
        expected = generating(lowered(name).generate, prompts(), **options)
        assert torch.equal(generating(program.generate, prompts(), **options), expected)
    assert (recordings.recorded, recordings.replayed) == (4, 14), "two batches at two lengths, a token a replay"


def test_logits_and_caches_are_those_of_the_program():
    program, ids = recorded("llama", Recordings()), prompts(1, 15)["input_ids"]
    (_, past), (_, expected_past) = call(program, ids[:, :6]), call(lowered("llama"), ids[:, :6])
    for place in range(6, 15):
        found, past = call(program, ids[:, place : place + 1], past)
        expected, expected_past = call(lowered("llama"), ids[:, place : place + 1], expected_past)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert past.get_seq_length() == place + 1
    for layer, expected in zip(past.layers, expected_past.layers, strict=True):
        torch.testing.assert_close(layer.keys, expected.keys, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(layer.values, expected.values, rtol=1e-4, atol=1e-5)


def test_no_tensor_that_is_held_changes():
    """A cache is followed twice, and others are in between: each goes on as it was."""
    recordings = Recordings()
    program, ids = recorded("llama", recordings), prompts(1, 12)["input_ids"]
    _, start = call(program, ids[:, :5])
    _, start = call(program, ids[:, 5:6], start)
    held = [layer.keys[:, :, 1:4] for layer in start.layers]
    before = [each.clone() for each in held]
    branches = [copy.copy(start) for _ in range(2)]
    for branch in branches:
        branch.layers = [copy.copy(layer) for layer in start.layers]
    found = [
        call(program, ids[:, place : place + 1], branch)[0] for place, branch in zip((6, 7), branches, strict=True)
    ]
    expected = [call(lowered("llama"), ids[:, place : place + 1], copy.deepcopy(start))[0] for place in (6, 7)]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert recordings.recorded == 2, "the second branch has buffers of its own"
    del branches, start
    call(program, ids[:, 6:7], call(program, ids[:, 6:9])[1])
    assert recordings.recorded == 3, "something still shows the buffers of the first"
    assert all(torch.equal(one, other) for one, other in zip(held, before, strict=True))


def test_buffers_that_nobody_looks_at_serve_again_and_others_make_room():
    recordings = Recordings()
    program = recorded("llama", recordings, most=2)
    for batch in (1, 1, 2, 3, 1):
        ids = prompts(batch, 6)["input_ids"]
        call(program, ids[:, 5:], call(program, ids[:, :5])[1])
    assert recordings.recorded == 4, "the batch of one was dropped for the third"


def test_steps_of_a_copy_and_of_a_moved_graph_are_recorded_anew():
    recordings = Recordings()
    program, ids = copy.deepcopy(recorded("llama", recordings)), prompts(1, 8)["input_ids"]
    _, past = call(program, ids[:, :5])
    _, past = call(program, ids[:, 5:6], past)
    assert recordings.recorded == 1
    with torch.no_grad():
        for parameter in program.parameters():
            parameter.data = parameter.data.clone()
    found, _ = call(program, ids[:, 6:7], past)
    assert recordings.recorded == 2
    torch.testing.assert_close(found, call(lowered("llama"), ids[:, :7])[0][:, -1:], rtol=1e-4, atol=1e-5)


def test_a_step_that_needs_the_length_of_its_cache_says_so():
    expected = "cache of fixed length: %.* of transformer.h.0.self_attention: %.* adds other numbers than 0"
    with pytest.raises(FxQuantError, match=expected):
        recorded("bloom", Recordings())


def test_what_cannot_be_recorded_is_an_error(monkeypatch):
    monkeypatch.setattr("fxquant.recording.check", lambda *_: None)
    program = fxq.Program(lowered("llama").graphs, "decoder")
    with pytest.raises(ConfigError, match="outputs = 'shared': what a decoder returns is kept"):
        fxq.cuda_graphs(program, outputs="shared")
    with pytest.raises(ConfigError, match="tokens = 0: expected a positive integer"):
        fxq.cuda_graphs(program, tokens=0)
    monkeypatch.setattr(program, "adapter", "encoder-decoder")
    with pytest.raises(FxQuantError, match="the adapter 'encoder-decoder' cannot be recorded: those of a decoder can"):
        fxq.cuda_graphs(program)
