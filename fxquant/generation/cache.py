"""Caches of keys and values as flat tensors, and back.

Layer i of a cache is two tensors, `key_i` and `value_i`, each (batch, heads, length, head size). A length of 0 is an
empty cache, so that one graph serves the prompt and the tokens after it.
"""

import functools
import importlib
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fxquant.errors import InputError
from fxquant.graph.calling import Leaf

KINDS = ("key_", "value_")


@functools.cache
def names(layers: int, prefix: str = "") -> tuple[str, ...]:
    """Return the names of the tensors of a cache, in order."""
    return tuple(f"{prefix}{kind}{layer}" for layer in range(layers) for kind in KINDS)


def caches() -> Any:
    """Return the module of transformers that defines caches."""
    return importlib.import_module("transformers.cache_utils")


def pack(tensors: Sequence[Tensor]) -> Any:
    """Return a transformers cache that holds these tensors and keeps every token.

    Its layers are plain ones for models with a sliding window too: these mask what is outside, and their graphs take
    the tokens from the first one on.
    """
    cache = caches().DynamicCache()
    for key, value in zip(tensors[::2], tensors[1::2], strict=True):
        cache.layers.append(_layer(key, value))
    return cache


def pair(own: Sequence[Tensor] = (), cross: Sequence[Tensor] = ()) -> Any:
    """Return the cache of an encoder-decoder that holds these tensors of its self- and its cross-attention."""
    return caches().EncoderDecoderCache(pack(own), pack(cross))


def encoder_output(hidden: Tensor) -> Any:
    """Return hidden states as the output of an encoder."""
    return importlib.import_module("transformers.modeling_outputs").BaseModelOutput(last_hidden_state=hidden)


def unpack(cache: Any) -> list[Tensor]:
    """Return the tensors of a cache that has been filled."""
    return [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]


def tensors_of(cache: Any, leaves: Sequence[Leaf], ids: Tensor) -> list[Tensor]:
    """Return the tensors that a cache holds; where it has none yet, empty ones for a batch of ids.

    Args:
        cache: what a call was given as past_key_values.
        leaves: those of a graph's inputs that are its cache.
        ids: the tokens of the call.

    Raises:
        InputError: it is no dynamic cache, or one of other layers.
    """
    known = caches()
    if not isinstance(cache, known.DynamicCache):
        advice = "leave out past_key_values and cache_implementation, or give a transformers.DynamicCache"
        raise InputError(f"past_key_values is a {type(cache).__name__}: {advice}")
    if cache.get_seq_length() == 0:
        return list(lengthless(leaves, ids).values())
    if len(cache.layers) != len(leaves) // 2:
        raise InputError(f"past_key_values has {len(cache.layers)} layers, and the model {len(leaves) // 2}")
    for layer in cache.layers:
        if type(layer) is not known.DynamicLayer:
            advice = "give transformers.DynamicCache(), which keeps every token"
            raise InputError(f"past_key_values has a filled {type(layer).__name__}: {advice}")
    return unpack(cache)


def store(cache: Any, tensors: Sequence[Tensor]) -> None:
    """Let a cache hold these tensors, in plain layers."""
    plain = caches().DynamicLayer
    if len(cache.layers) != len(tensors) // 2 or any(type(layer) is not plain for layer in cache.layers):
        cache.layers[:] = pack(tensors).layers
        return
    for layer, key, value in zip(cache.layers, tensors[::2], tensors[1::2], strict=True):
        layer.keys, layer.values, layer.is_initialized = key, value, True


def flat(tensors: Sequence[Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Return the tensors of a cache by name."""
    return dict(zip(names(len(tensors) // 2, prefix), tensors, strict=True))


def lengthless(leaves: Sequence[Leaf], ids: Tensor) -> dict[str, Tensor]:
    """Return the tensors of an empty cache for a batch of ids, as a graph's inputs describe them."""
    found = {}
    for leaf in leaves:
        heads, size = int(leaf.shape[1]), int(leaf.shape[3])
        found[leaf.name] = ids.new_empty((ids.shape[0], heads, 0, size), dtype=leaf.dtype)
    return found


def _layer(key: Tensor, value: Tensor) -> Any:
    layer = caches().DynamicLayer()
    layer.lazy_initialization(key, value)
    layer.keys, layer.values = key, value
    return layer
