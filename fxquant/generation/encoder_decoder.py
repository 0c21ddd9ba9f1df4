"""Capture of an encoder-decoder: the encoder, the keys and values of the cross-attention, and the decoder's step."""

import inspect
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxquant.errors import CaptureError
from fxquant.generation import cache
from fxquant.generation.calls import POSITIONS
from fxquant.generation.host import Flat, capture_flat, class_of, differs, generation_config, repeated
from fxquant.generation.seq2seq import CROSS, Encoder, Seq2Seq
from fxquant.graph import edit
from fxquant.graph.example import Example, forward_parameters
from fxquant.graph.modes import inference

_PAST = 3  # tokens in the example's cache
_LEAST = 8  # of the source and of the target, so that the sizes of their parts differ
_TARGET = "decoder_input_ids"


def capture_encoder_decoder(model: Any, example: Example) -> dict[str, fx.GraphModule]:
    """Return the graphs `encoder`, `cross` and `step` of a model, checked against the model on the example.

    Raises:
        CaptureError: the example has other arguments than a source, its mask and `decoder_input_ids`, or lacks the
            last where the model states no token to start with; the model's cache holds other than keys and values per
            layer; a graph cannot be captured, or computes something else.
    """
    source, target = _given(model, example)
    encoder = _encoder(model, source)
    with inference(model):
        hidden = Encoder({"encoder": encoder})(**source)[0]
        own, cross = _past(model, hidden, target[:, :_PAST])
    kind, layers = type(model), len(own) // 2
    crossing = capture_flat(model, _flat_cross(kind), {"encoder_hidden_states": hidden}, [])
    mask = torch.ones_like(target)
    inputs = {_TARGET: target[:, _PAST:].contiguous(), "attention_mask": _mask(source, hidden)}
    inputs["decoder_attention_mask"] = mask
    if "decoder_position_ids" in inspect.signature(model.forward).parameters:
        inputs["decoder_position_ids"] = POSITIONS["place"](mask, _PAST).contiguous()
    inputs |= cache.flat(own) | cache.flat(cross, CROSS)
    step = capture_flat(model, _flat_step(kind, layers), inputs, [_TARGET, *cache.names(layers)])
    graphs = {"encoder": encoder, "cross": crossing, "step": step}
    with inference(model):
        expected = model(**source, decoder_input_ids=target)
        facts = {"output": class_of(expected), "config": generation_config(model)}
        edit.mark(step, generation={**facts, "parameters": _parameters(model)})
        _check(graphs, source, target, expected.logits)
    return graphs


def _given(model: Any, example: Example) -> tuple[dict[str, Tensor], Tensor]:
    """Return the source with its mask, and the target's ids, of two rows and `_LEAST` tokens at least."""
    given = dict(zip(example.names, example.tensors, strict=True))
    main = model.get_encoder().main_input_name
    taken = (main, "attention_mask", _TARGET)
    others = [name for name in given if name not in taken]
    if others or main not in given:
        what = f"{others[0]!r}" if others else f"no {main!r}"
        raise CaptureError(f"example_inputs holds {what}; generation takes {', '.join(map(repr, taken))}")
    rows = -(-2 // given[main].shape[0])
    target = repeated(given[_TARGET] if _TARGET in given else _start(model, given[main]), rows, _LEAST)
    if given[main].is_floating_point():
        return {main: given[main].repeat(rows, *[1] * (given[main].ndim - 1))}, target
    mask = given.get("attention_mask", torch.ones_like(given[main])).to(torch.long)
    return {main: repeated(given[main], rows, _LEAST), "attention_mask": repeated(mask, rows, _LEAST)}, target


def _start(model: Any, source: Tensor) -> Tensor:
    """Return the token that generation starts with for each row of a source, (batch, 1)."""
    first = model.generation_config.decoder_start_token_id
    if first is None:
        first = model.generation_config.bos_token_id
    if not isinstance(first, int):
        advice = f"give {_TARGET!r}, token ids (batch, sequence)"
        raise CaptureError(
            f"example_inputs holds no {_TARGET!r}, and the model states no token to start with: {advice}"
        )
    return torch.full((source.shape[0], 1), first, dtype=torch.long, device=source.device)


def _encoder(model: Any, source: dict[str, Tensor]) -> fx.GraphModule:
    def encode(host: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"last_hidden_state": host.get_encoder()(**given).last_hidden_state}

    gm = capture_flat(model, encode, source, [name for name in source if not source[name].is_floating_point()])
    encoder: nn.Module = model.get_encoder()
    with inference(model):
        output = class_of(encoder(**source))
    edit.mark(gm, generation={"output": output, "parameters": _parameters(encoder)})
    return gm


def _parameters(model: nn.Module) -> list[dict[str, Any]]:
    return [asdict(parameter) for parameter in forward_parameters(model)]


def _mask(source: dict[str, Tensor], hidden: Tensor) -> Tensor:
    return source.get("attention_mask", torch.ones(hidden.shape[:2], dtype=torch.long, device=hidden.device))


def _past(model: Any, hidden: Tensor, target: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Return the tensors of both caches, self-attention's and cross-attention's, after some tokens."""
    past = cache.pair()
    _decode(type(model), model, hidden, {_TARGET: target}, past)
    own, cross = (cache.unpack(each) for each in (past.self_attention_cache, past.cross_attention_cache))
    if not own or len(own) != len(cross) or not all(isinstance(t, Tensor) and t.ndim == 4 for t in (*own, *cross)):
        expected = "keys and values of (batch, heads, length, size) for both attentions of a layer"
        raise CaptureError(f"the model's caches have {len(own)} and {len(cross)} tensors; expected {expected}")
    return own, cross


def _decode(own: Any, host: Any, hidden: Tensor, inputs: dict[str, Tensor], past: Any) -> Any:
    outputs = cache.encoder_output(hidden)
    return own.forward(host, **inputs, encoder_outputs=outputs, past_key_values=past, use_cache=True)


def _flat_cross(own: Any) -> Flat:
    """Return what a first token does to the cache of the cross-attention; the rest of its computation is dead code."""

    def cross(host: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
        (hidden,) = given.values()
        past = cache.pair()
        _decode(own, host, hidden, {_TARGET: hidden.new_zeros((hidden.shape[0], 1), dtype=torch.long)}, past)
        return cache.flat(cache.unpack(past.cross_attention_cache), CROSS)

    return cross


def _flat_step(own: Any, layers: int) -> Flat:
    def step(host: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
        parts = [[given.pop(name) for name in cache.names(layers, prefix)] for prefix in ("", CROSS)]
        past = cache.pair(*parts)
        # of the hidden states the size alone is read, as their keys and values are known
        keys = parts[1][0]
        hidden = keys.new_zeros((keys.shape[0], keys.shape[2], host.config.hidden_size))
        output = _decode(own, host, hidden, given, past)
        return {"logits": output.logits, **cache.flat(cache.unpack(past.self_attention_cache))}

    return step


def _check(graphs: dict[str, fx.GraphModule], source: dict[str, Tensor], target: Tensor, expected: Tensor) -> None:
    """Compare a prompt and two single tokens after it with the model's whole forward."""
    called = Seq2Seq(graphs)
    hidden, past, length = called.encoder(**source), None, target.shape[1]
    mask = _mask(source, hidden[0])
    for first, last in ((0, length - 2), (length - 2, length - 1), (length - 1, length)):
        inputs = {_TARGET: target[:, first:last], "attention_mask": mask}
        output = called(encoder_outputs=hidden, **inputs, past_key_values=past, use_cache=True)
        past = output.past_key_values
        off = differs(output.logits, expected[:, first:last], torch.ones_like(target[:, first:last]))
        if off is not None:
            raise CaptureError(f"the captured graphs compute something else than the model: {off}")
