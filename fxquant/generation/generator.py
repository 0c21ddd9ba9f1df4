"""A model's own generation code around graphs: its class, its configurations, and graphs in the place of forward."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx

from fxquant.generation.decoding import Decoder
from fxquant.generation.facts import read_config
from fxquant.generation.seq2seq import Encoder, Seq2Seq
from fxquant.generation.skeleton import put_on, skeleton_from
from fxquant.graph import edit

Graphs = Mapping[str, fx.GraphModule]


@dataclass(frozen=True)
class Way:
    """What stands for the forward of a model that generates, and for that of its encoder where it has one."""

    needs: tuple[str, ...]
    forward: Callable[[Graphs], Callable[..., Any]]
    encoder: Callable[[Graphs], Callable[..., Any]] | None = None

    def check(self, graphs: Graphs) -> None:
        """Raise `ConfigError` unless the graphs are such as `capture_generation` makes."""
        read_config(graphs, "step")
        self.forward(graphs)


WAYS = {
    "decoder": Way(("step",), Decoder),
    "encoder-decoder": Way(("encoder", "cross", "step"), Seq2Seq, Encoder),
}


def generator_of(bones: Any, graphs: Graphs, way: Way, forward: Callable[..., Any]) -> Any:
    """Return a copy of the skeleton of a model that calls graphs.

    Args:
        bones: the skeleton; None makes one of what the graphs know of their model.
        graphs: those that the way needs.
        way: an entry of `WAYS`.
        forward: what stands for the model's forward: `way.forward` of the graphs.

    Raises:
        ConfigError: there is no skeleton, and the installed transformers does not make one.
    """
    known = bones
    if known is None:
        known = skeleton_from(edit.marks(graphs["step"]).get("config"), read_config(graphs, "step"))
    generator = copy.deepcopy(known)
    generator.forward = forward
    if way.encoder is not None:
        generator.get_encoder().forward = way.encoder(graphs)
    return generator


def on_device_of(generator: Any, graphs: Graphs) -> Any:
    """Return the generator, which answers that its tensors are where those of the graphs are."""
    step = graphs["step"]
    put_on(generator, next(tensor.device for tensor in (*step.parameters(), *step.buffers())))
    return generator
