"""What a transformers model is captured with where nobody gave an example, and what it takes for inputs left out."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from fxquant.capture_generation import generates
from fxquant.errors import ConfigError, first_line
from fxquant.graph.modes import inference
from fxquant.integrations.hf.config import FxQuantConfig

# Inputs that tokenizers give for ids, and the value that stands at every place where they are left out.
_BESIDE_IDS = {"attention_mask": 1, "token_type_ids": 0}
_IMAGES = 2  # of an example


def example_of(model: Any, config: FxQuantConfig) -> dict[str, Any]:
    """Return keyword arguments to capture a model with.

    Raises:
        ConfigError: nothing was given, and the model's `dummy_inputs` are none of its inputs.
    """
    batches = config.calibration
    given = config.example_inputs
    if given is None and isinstance(batches, Sequence) and len(batches):
        given = batches[0]
    example = _dummies(model) if given is None else dict(given)
    ids = example.get("input_ids")
    if isinstance(ids, Tensor):
        for name in _beside_ids(model):
            example.setdefault(name, torch.full_like(ids, _BESIDE_IDS[name]))
    return example


def defaults_of(model: Any, example: Mapping[str, Any]) -> dict[str, int]:
    """Return the inputs that may be left out, with the value that the model takes for each place of them.

    Only what the model itself shows on the example counts: with ones for a mask it must give what it gives without.

    Raises:
        ConfigError: the model cannot be called with the example.
    """
    found = {}
    with inference(model):
        for name in [name for name in _beside_ids(model) if name in example]:
            rest = {key: value for key, value in example.items() if key != name}
            stands = _called(model, {**rest, name: torch.full_like(example[name], _BESIDE_IDS[name])})
            if _alike(_called(model, rest), stands):
                found[name] = _BESIDE_IDS[name]
    return found


def filled(given: Mapping[str, Any], defaults: Mapping[str, int]) -> dict[str, Any]:
    """Return the arguments of a call with the inputs that were left out."""
    ids = given.get("input_ids")
    if not isinstance(ids, Tensor):
        return dict(given)
    missing = [name for name in defaults if given.get(name) is None]
    return {**given, **{name: torch.full_like(ids, defaults[name]) for name in missing}}


def _called(model: Any, inputs: Mapping[str, Any]) -> Any:
    try:
        return model(**inputs)
    except Exception as error:  # whatever the model's code raises
        raise ConfigError(
            f"a {type(model).__name__} cannot be called with {', '.join(inputs)} ({type(error).__name__}: "
            f"{first_line(error)}): give FxQuantConfig(example_inputs={{…}}), keyword arguments as the model is called"
        ) from error


def _beside_ids(model: Any) -> list[str]:
    accepted = inspect.signature(model.forward).parameters
    names = ["attention_mask"] if "attention_mask" in accepted else []
    if "token_type_ids" in accepted and getattr(model.config, "type_vocab_size", None) and not generates(model):
        names.append("token_type_ids")
    return names


def _dummies(model: Any) -> dict[str, Any]:
    main = model.main_input_name
    found = dict(model.dummy_inputs)
    if main == "pixel_values":
        found = {main: _images(model.config)}
    if main not in found:
        raise ConfigError(
            f"a {type(model).__name__} takes {main}, and its dummy_inputs are {', '.join(found) or 'none'}: give "
            "FxQuantConfig(example_inputs={…}), keyword arguments as the model is called"
        )
    accepted = inspect.signature(model.forward).parameters
    taken = {main, "attention_mask", "decoder_input_ids"} if generates(model) else set(accepted)
    return {name: value for name, value in found.items() if name in taken}


def _images(config: Any) -> Tensor:
    size, channels = getattr(config, "image_size", None), getattr(config, "num_channels", None)
    if size is None or channels is None:
        raise ConfigError(
            "the model takes pixel_values, and its configuration does not say of what size: give "
            "FxQuantConfig(example_inputs={'pixel_values': …})"
        )
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return torch.randn(_IMAGES, channels, height, width, generator=torch.Generator().manual_seed(0))


def _alike(first: Any, second: Any) -> bool:
    pairs = zip(tree_leaves(first), tree_leaves(second), strict=True)
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in pairs if isinstance(a, Tensor))
