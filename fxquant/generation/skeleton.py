"""Copies of a model's tree of modules: on its tensors, or on none, where only its generation code is of use."""

import copy
import importlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fxquant.errors import ConfigError

_PLACE = "place_of_tensors"  # a parameter that says on which device the graphs are, as generation code asks for it


def sharing(model: nn.Module) -> Any:
    """Return a copy of the modules and configurations of a model, on its tensors."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in _tensors(model)})


def skeleton(model: nn.Module) -> Any:
    """Return a copy of the modules and configurations of a model, without tensors, in eval mode."""
    memory: dict[int, Any] = {id(tensor): None for tensor in _tensors(model)}
    bones = copy.deepcopy(model, memory)
    bones.eval()
    return bones


def skeleton_from(config: object, generation: Mapping[str, Any]) -> Any:
    """Return the skeleton of a transformers model by its configurations, which may come from a hostile file.

    No code but that of the installed transformers is run.

    Raises:
        ConfigError: transformers is not installed or has no such model, or the configuration is not one of its.
    """
    try:
        transformers = importlib.import_module("transformers")
    except ImportError as error:
        raise ConfigError(f"generate needs the package transformers, whose code generates: {error}") from None
    known_config = config if isinstance(config, dict) else {}
    named = known_config.get("architectures")
    name = named[0] if isinstance(named, list) and named else None
    cls: Any = getattr(transformers, name, None) if isinstance(name, str) and name.isidentifier() else None
    known = isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)
    if not known or not cls.can_generate():
        advice = "give the model whose class it is with program.attach(model)"
        raise ConfigError(f"the program was made from a {str(name)[:80]!r}, which transformers does not have: {advice}")
    try:
        with torch.device("meta"):
            model = cls(cls.config_class.from_dict({**known_config}))
        model.generation_config = transformers.GenerationConfig.from_dict({**generation})
    except Exception as error:  # transformers raises what the values made it stumble over
        raise ConfigError(f"transformers makes no {name} of the program's configuration: {error}") from error
    return skeleton(model)


def put_on(bones: nn.Module, device: torch.device) -> None:
    """Let a skeleton answer that its tensors are on `device`, in float32."""
    bones.register_parameter(_PLACE, nn.Parameter(torch.empty(0, device=device), requires_grad=False))


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
