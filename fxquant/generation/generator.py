"""A model's own generation code around graphs: its class, its configurations, and graphs in the place of forward."""

import copy
from collections.abc import Mapping
from typing import Any

from torch import fx

from fxquant.generation.skeleton import put_on, skeleton_from
from fxquant.graph import edit


def generator_of(bones: Any, graphs: Mapping[str, fx.GraphModule], forward: Any) -> tuple[Any, Any]:
    """Return the skeleton of a model, and a copy of it that calls `forward`.

    Args:
        bones: the skeleton; None makes one of what the graphs know of their model.
        graphs: those that `forward` calls.
        forward: what is called in the place of the model's forward, and has its signature.

    Raises:
        ConfigError: there is no skeleton, and the installed transformers does not make one.
    """
    step = graphs["step"]
    if bones is None:
        facts = edit.marks(step)
        bones = skeleton_from(facts.get("config") or {}, facts["generation"]["config"])
    generator = copy.copy(bones)
    generator.__dict__["_parameters"] = {}
    put_on(generator, next(tensor.device for tensor in (*step.parameters(), *step.buffers())))
    generator.forward = forward
    return bones, generator
