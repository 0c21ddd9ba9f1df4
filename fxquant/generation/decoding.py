"""A decoder-only model's forward by its captured step, called as the model is."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from fxquant.generation import cache, calls, facts
from fxquant.graph.calling import name_arguments

_KNOWN = "input_ids, attention_mask, position_ids, past_key_values, use_cache, logits_to_keep"
_TAKEN = ("input_ids", "attention_mask", "logits_to_keep")


class Decoder:
    """Calls the graph `step` in the place of a model's forward.

    Args:
        graphs: `step`, as `capture_decoder` returns it or a later stage makes of it.

    Raises:
        ConfigError: what the graph says of the model makes no sense.
    """

    def __init__(self, graphs: Mapping[str, fx.GraphModule]) -> None:
        self.step = graphs["step"]
        self.positions = facts.read_positions(graphs, "step")
        forward = facts.read_forward(graphs, "step", ("logits", "past_key_values"))
        self.output, self.parameters, self.__signature__ = forward.output, forward.parameters, forward.signature
        taken = (*_TAKEN, "position_ids") if self.positions is not None else _TAKEN
        self.past = facts.caches_of("step", facts.check_ends(graphs, "step", taken, ()))
        facts.check_ends(graphs, "step", (), ("logits", *(leaf.name for leaf in self.past)))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the model's output: `logits`, and `past_key_values` where they are given or asked for.

        Raises:
            InputError: an argument is of another kind than steps take.
        """
        given = name_arguments(self.parameters, args, kwargs, f"the steps of the program take {_KNOWN}")
        ids, past = calls.ids(given, "input_ids"), given.pop("past_key_values", None)
        asked = given.pop("use_cache", None)
        tensors = self._past(past, ids)
        length = next(iter(tensors.values())).shape[2]
        mask = calls.mask(given, "attention_mask", ids, length + ids.shape[1])
        inputs = {"input_ids": ids, "attention_mask": mask}
        if self.positions is not None:
            inputs["position_ids"] = calls.positions(given.pop("position_ids", None), ids, mask, self.positions)
        inputs["logits_to_keep"] = _kept(given, ids)
        calls.refuse(given, _KNOWN)
        found = self.step(**inputs, **tensors)
        result = {"logits": found.pop("logits")}
        if past is not None or asked:
            result["past_key_values"] = past = cache.pack([]) if past is None else past
            cache.store(past, list(found.values()))
        return calls.output(self.output, result)

    def _past(self, past: Any, ids: Tensor) -> dict[str, Tensor]:
        if past is None:
            return cache.lengthless(self.past, ids)
        return cache.flat(cache.tensors_of(past, self.past, ids))


def _kept(given: dict[str, Any], ids: Tensor) -> Tensor:
    """Return the places whose logits are wanted: an int n asks for the last n, 0 for all."""
    kept = given.pop("logits_to_keep", 0)
    if isinstance(kept, Tensor):
        return kept
    return torch.arange(max(ids.shape[1] - kept, 0) if kept else 0, ids.shape[1], device=ids.device)
