"""Capture of a decoder-only model's step: tokens and a flat cache in, logits and the longer cache out."""

import inspect
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxquant.errors import CaptureError
from fxquant.generation import cache
from fxquant.generation.calls import POSITIONS
from fxquant.generation.decoding import Decoder
from fxquant.generation.host import Flat, capture_flat, class_of, differs, generation_config, repeated
from fxquant.graph import edit
from fxquant.graph.example import Example, forward_parameters
from fxquant.graph.modes import inference

_TAKEN = ("input_ids", "attention_mask", "position_ids")
_PAST = 3  # tokens in the example's cache
_LEAST = 8  # tokens of the example, so that the sizes of its parts differ


def capture_decoder(model: nn.Module, example: Example) -> dict[str, fx.GraphModule]:
    """Return the graph `step` of a decoder-only model, checked against the model on the example.

    Raises:
        CaptureError: the example has arguments that steps do not take, the model's cache holds other than keys and
            values per layer, the step cannot be captured, or it computes something else than the model.
    """
    ids, mask = _prompt(example)
    takes_positions = "position_ids" in inspect.signature(model.forward).parameters
    with inference(model):
        past = _past(model, ids[:, :_PAST], mask[:, :_PAST])
    inputs = {"input_ids": ids[:, _PAST:].contiguous(), "attention_mask": mask}
    if takes_positions:
        inputs["position_ids"] = POSITIONS["place"](mask, _PAST).contiguous()
    inputs["logits_to_keep"] = torch.arange(1, ids.shape[1] - _PAST, device=ids.device)
    lengths = [*inputs, *cache.names(len(past) // 2)]
    gm = capture_flat(model, _flat_step(type(model), len(past) // 2), inputs | cache.flat(past), lengths)
    with inference(model):
        facts = {
            "positions": _default_positions(model, ids) if takes_positions else None,
            "parameters": [asdict(parameter) for parameter in forward_parameters(model)],
            "output": class_of(model(input_ids=ids[:, :2])),
            "config": generation_config(model),
        }
        edit.mark(gm, generation=facts)
        _check(model, gm, ids, mask)
    return {"step": gm}


def _prompt(example: Example) -> tuple[Tensor, Tensor]:
    """Return ids and mask of at least two rows and `_LEAST` tokens, made of the example's."""
    given = dict(zip(example.names, example.tensors, strict=True))
    others = [name for name in given if name not in _TAKEN]
    if others or "input_ids" not in given:
        what = f"{others[0]!r}" if others else "no 'input_ids'"
        raise CaptureError(f"example_inputs holds {what}; steps of generation take {', '.join(map(repr, _TAKEN))}")
    ids = given["input_ids"]
    mask = given.get("attention_mask", torch.ones_like(ids)).to(torch.long)
    rows = -(-2 // ids.shape[0])
    return repeated(ids, rows, _LEAST), repeated(mask, rows, _LEAST)


def _past(model: nn.Module, ids: Tensor, mask: Tensor) -> list[Tensor]:
    """Return the tensors of the cache after some tokens."""
    filled = cache.caches().DynamicCache()
    model(input_ids=ids, attention_mask=mask, past_key_values=filled, use_cache=True)
    kinds = {type(layer).__name__ for layer in filled.layers}
    found = cache.unpack(filled) if kinds == {"DynamicLayer"} else []
    if not found or not all(isinstance(tensor, Tensor) and tensor.ndim == 4 for tensor in found):
        what = ", ".join(sorted(kinds)) or "no layers"
        raise CaptureError(f"the model's cache has {what}; expected keys and values of (batch, heads, length, size)")
    return found


def _flat_step(own: Any, layers: int) -> Flat:
    def step(host: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
        past = cache.pack([given.pop(name) for name in cache.names(layers)])
        output = own.forward(host, **given, past_key_values=past, use_cache=True)
        return {"logits": output.logits, **cache.flat(cache.unpack(past))}

    return step


def _default_positions(model: nn.Module, ids: Tensor) -> str:
    """Return how the model counts positions where it is given none (`POSITIONS`)."""
    mask = torch.ones_like(ids)
    mask[:, :2] = 0
    own = model(input_ids=ids, attention_mask=mask).logits
    for name, count in POSITIONS.items():
        given = model(input_ids=ids, attention_mask=mask, position_ids=count(mask, 0)).logits
        if differs(own, given, torch.ones_like(mask)) is None:
            return name
    raise CaptureError(f"the model counts positions in a way of its own, not by {' or '.join(POSITIONS)}")


def _check(model: nn.Module, gm: fx.GraphModule, ids: Tensor, mask: Tensor) -> None:
    """Compare a prompt and two single tokens after it with the model's whole forward."""
    decoder = Decoder({"step": gm})
    expected = model(input_ids=ids, attention_mask=mask).logits
    past, length = None, ids.shape[1]
    for first, last in ((0, length - 2), (length - 2, length - 1), (length - 1, length)):
        output = decoder(ids[:, first:last], attention_mask=mask[:, :last], past_key_values=past, use_cache=True)
        past = output.past_key_values
        off = differs(output.logits, expected[:, first:last], mask[:, first:last])
        if off is not None:
            raise CaptureError(f"the captured step computes something else than the model: {off}")
