"""A decoder-only model's forward by its captured step, called as the model is."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from fxquant.errors import InputError
from fxquant.generation import cache
from fxquant.graph import edit, structure
from fxquant.graph.calling import Parameter, name_arguments, python_signature
from fxquant.graph.signature import signature_of

# How models count positions that they are not given, from the mask of all tokens, (batch, total): by place, or without
# padding. Both give (batch, total).
POSITIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "place": lambda mask: torch.arange(mask.shape[1], device=mask.device).expand(mask.shape),
    "mask": lambda mask: mask.cumsum(-1) * mask - 1,
}
_KNOWN = "input_ids, attention_mask, position_ids, past_key_values, use_cache, logits_to_keep"


class Decoder:
    """Calls the graph `step` in the place of a model's forward.

    Args:
        graphs: `step`, as `capture_decoder` returns it or a later stage makes of it.
    """

    def __init__(self, graphs: Mapping[str, fx.GraphModule]) -> None:
        self.step = graphs["step"]
        facts = edit.marks(self.step)["generation"]
        self.positions = facts["positions"]
        self.output = facts["output"]
        self.parameters = tuple(Parameter(**each) for each in facts["parameters"])
        own = python_signature(self.parameters)
        # transformers asks what a model's forward takes
        self.__signature__ = own.replace(parameters=list(own.parameters.values())[1:])
        leaves = signature_of(self.step).leaves
        self.shapes = {leaf.name: (int(leaf.shape[1]), int(leaf.shape[3])) for leaf in leaves if len(leaf.shape) == 4}
        self.like = next(tensor for tensor in (*self.step.parameters(), *self.step.buffers()))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the model's output: `logits`, and `past_key_values` where they are given or asked for.

        Raises:
            InputError: an argument is of another kind than steps take.
        """
        given = name_arguments(self.parameters, args, kwargs, f"the steps of the program take {_KNOWN}")
        ids, past = _ids(given), given.pop("past_key_values", None)
        asked = given.pop("use_cache", None)
        tensors = self._past(past, ids)
        length = next(iter(tensors.values())).shape[2]
        mask = _mask(given, ids, length)
        inputs = {"input_ids": ids, "attention_mask": mask}
        if self.positions is not None:
            inputs["position_ids"] = _positions(given, ids, mask, self.positions)
        inputs["logits_to_keep"] = _kept(given, ids)
        _refuse(given)
        found = self.step(**inputs, **tensors)
        result = {"logits": found.pop("logits")}
        if past is not None or asked:
            result["past_key_values"] = past = cache.pack([]) if past is None else past
            cache.store(past, list(found.values()))
        return structure.build(_described(self.output, list(result)), list(result.values()))

    def _past(self, past: Any, ids: Tensor) -> dict[str, Tensor]:
        empty = cache.lengthless(self.shapes, ids.shape[0], self.like)
        return empty if past is None else cache.flat(cache.tensors_of(past, list(empty.values())))


def _ids(given: dict[str, Any]) -> Tensor:
    ids = given.pop("input_ids", None)
    if not isinstance(ids, Tensor) or ids.ndim != 2:
        raise InputError(f"input_ids are {_kind(ids)}: expected a tensor of token ids (batch, sequence)")
    return ids


def _mask(given: dict[str, Any], ids: Tensor, length: int) -> Tensor:
    mask, shape = given.pop("attention_mask", None), (ids.shape[0], length + ids.shape[1])
    if mask is None:
        return ids.new_ones(shape)
    if not isinstance(mask, Tensor) or tuple(mask.shape) != shape:
        raise InputError(f"attention_mask is {_kind(mask)}: expected a tensor of shape {shape}, past tokens first")
    return mask.to(ids.dtype)


def _positions(given: dict[str, Any], ids: Tensor, mask: Tensor, default: str) -> Tensor:
    found = given.pop("position_ids", None)
    if found is None:
        found = POSITIONS[default](mask)[:, mask.shape[1] - ids.shape[1] :]
    if not isinstance(found, Tensor) or found.ndim != 2 or found.shape[1] != ids.shape[1]:
        raise InputError(f"position_ids are {_kind(found)}: expected a tensor of the shape of input_ids")
    return found.expand(ids.shape)


def _kept(given: dict[str, Any], ids: Tensor) -> Tensor:
    """Return the places whose logits are wanted: an int n asks for the last n, 0 for all."""
    kept = given.pop("logits_to_keep", 0)
    if isinstance(kept, Tensor):
        return kept
    return torch.arange(max(ids.shape[1] - kept, 0) if kept else 0, ids.shape[1], device=ids.device)


def _refuse(given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if value is not None and value is not False and not (name == "return_dict" and value):
            raise InputError(f"unexpected argument {name!r}: the steps of the program take {_KNOWN}")


def _kind(value: object) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _described(cls: str, keys: list[str]) -> structure.Data:
    return {"kind": "output", "class": cls, "keys": keys, "items": [{"kind": "leaf"}] * len(keys)}
