"""An encoder-decoder's forward by its captured graphs, called as the model is."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx

from fxquant.errors import InputError
from fxquant.generation import cache, calls, facts
from fxquant.graph.calling import name_arguments

CROSS = "cross_"  # how the names of the tensors of the cross-attention's cache begin
_KNOWN = "attention_mask, decoder_input_ids, decoder_attention_mask, encoder_outputs, past_key_values, use_cache"
_TAKEN = ("decoder_input_ids", "attention_mask", "decoder_attention_mask")
_HIDDEN = ("last_hidden_state",)


class Encoder:
    """Calls the graph `encoder` in the place of an encoder's forward.

    Raises:
        ConfigError: what the graph says of the encoder makes no sense.
    """

    def __init__(self, graphs: Mapping[str, fx.GraphModule]) -> None:
        self.graph = graphs["encoder"]
        forward = facts.read_forward(graphs, "encoder", _HIDDEN)
        self.output, self.parameters, self.__signature__ = forward.output, forward.parameters, forward.signature
        self.names = facts.source_of(graphs, _HIDDEN)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the encoder's output: `last_hidden_state`.

        Raises:
            InputError: an argument is of another kind than the graph takes.
        """
        known = f"the encoder of the program takes {', '.join(self.names)}"
        given = name_arguments(self.parameters, args, kwargs, known)
        main, *others = self.names
        source = given.pop(main, None)
        if not isinstance(source, Tensor):
            raise InputError(f"{main} are a {type(source).__name__}: expected a tensor, as in capture")
        inputs = {main: source}
        if others:
            inputs["attention_mask"] = calls.mask(given, "attention_mask", source, source.shape[1])
        given.pop("attention_mask", None)  # encoders of features take one and do not read it
        calls.refuse(given, ", ".join(self.names))
        return calls.output(self.output, self.graph(**inputs))


class Seq2Seq:
    """Calls the graphs `encoder`, `cross` and `step` in the place of a model's forward.

    `cross` computes the keys and values of the cross-attention once for a source; `step` takes them with each token.

    Raises:
        ConfigError: what the graphs say of the model makes no sense.
    """

    def __init__(self, graphs: Mapping[str, fx.GraphModule]) -> None:
        self.encoder = Encoder(graphs)
        self.cross, self.step = graphs["cross"], graphs["step"]
        forward = facts.read_forward(graphs, "step", ("logits", "past_key_values", "encoder_last_hidden_state"))
        self.output, self.parameters, self.__signature__ = forward.output, forward.parameters, forward.signature
        leaves = facts.check_ends(graphs, "step", _TAKEN, ())
        self.past = facts.caches_of("step", leaves)
        facts.check_ends(graphs, "step", (), ("logits", *(leaf.name for leaf in self.past)))
        crossing = [leaf.name for leaf in facts.caches_of("step", leaves, CROSS)]
        facts.check_ends(graphs, "cross", ("encoder_hidden_states",), crossing)
        self.takes_positions = any(leaf.name == "decoder_position_ids" for leaf in leaves)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the model's output: `logits`, `encoder_last_hidden_state`, and `past_key_values` where asked for.

        Raises:
            InputError: an argument is of another kind than the graphs take.
        """
        given = name_arguments(self.parameters, args, kwargs, f"the graphs of the program take {_KNOWN}")
        ids, past = calls.ids(given, "decoder_input_ids"), given.pop("past_key_values", None)
        asked = given.pop("use_cache", None)
        hidden = self._encode(given)
        own = self._past(past, ids)
        cross = self._cross(past, hidden)
        inputs = {
            "decoder_input_ids": ids,
            "attention_mask": calls.mask(given, "attention_mask", ids, hidden.shape[1]),
            **self._decoder_inputs(given, ids, next(iter(own.values())).shape[2]),
        }
        calls.refuse(given, _KNOWN)
        found = self.step(**inputs, **own, **cross)
        result = {"logits": found.pop("logits")}
        if past is not None or asked:
            result["past_key_values"] = past = cache.pair() if past is None else past
            _store(past, list(found.values()), list(cross.values()))
        return calls.output(self.output, {**result, "encoder_last_hidden_state": hidden})

    def _past(self, past: Any, ids: Tensor) -> dict[str, Tensor]:
        if past is None:
            return cache.lengthless(self.past, ids)
        return cache.flat(cache.tensors_of(_part(past, "self_attention_cache"), self.past, ids))

    def _encode(self, given: dict[str, Any]) -> Tensor:
        """Return the hidden states of the source, (batch, source length, size), encoding it where it is not yet."""
        found = given.pop("encoder_outputs", None)
        main = self.encoder.names[0]
        source = given.pop(main, None)
        if found is None:
            mask = given.get("attention_mask") if len(self.encoder.names) > 1 else None
            found = self.encoder(**{main: source}, attention_mask=mask)
        hidden: Tensor = found[0]
        if len(self.encoder.names) == 1:  # of features all are read, and a mask of them is of another length
            given.pop("attention_mask", None)
        return hidden

    def _cross(self, past: Any, hidden: Tensor) -> dict[str, Tensor]:
        known = None if past is None else _part(past, "cross_attention_cache")
        if known is not None and known.get_seq_length():
            return cache.flat(cache.unpack(known), CROSS)
        found: dict[str, Tensor] = self.cross(encoder_hidden_states=hidden)
        return found

    def _decoder_inputs(self, given: dict[str, Any], ids: Tensor, length: int) -> dict[str, Tensor]:
        mask = calls.mask(given, "decoder_attention_mask", ids, length + ids.shape[1])
        if not self.takes_positions:
            return {"decoder_attention_mask": mask}
        places = calls.positions(given.pop("decoder_position_ids", None), ids, mask, "place")
        return {"decoder_attention_mask": mask, "decoder_position_ids": places}


def _part(past: Any, name: str) -> Any:
    if not isinstance(past, cache.caches().EncoderDecoderCache):
        advice = "leave it out, or give a transformers.EncoderDecoderCache of two DynamicCaches"
        raise InputError(f"past_key_values is a {type(past).__name__}: {advice}")
    return getattr(past, name)


def _store(past: Any, own: list[Tensor], cross: list[Tensor]) -> None:
    cache.store(past.self_attention_cache, own)
    if not past.cross_attention_cache.get_seq_length():
        cache.store(past.cross_attention_cache, cross)
    past.is_updated = dict.fromkeys(range(len(cross) // 2), True)
