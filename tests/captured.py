"""The tiny models of `models` and `generative` with their graphs, captured once a process, as that takes seconds."""

from functools import cache

import generative
import models
from torch import Tensor, fx, nn

import fxquant as fxq


@cache
def captured(name: str) -> tuple[nn.Module, dict[str, Tensor], fx.GraphModule]:
    """Return a model, its inputs and its captured graph, which the stages leave as they are; tests must, too."""
    model, inputs = models.EVERY[name]()
    return model, inputs, fxq.capture(model, inputs)


@cache
def program(name: str) -> fxq.Program:
    """Return the captured program of a model that generates, which must not be changed."""
    if name in generative.DECODERS:
        return fxq.capture_generation(generative.decoder(name), generative.prompts())
    return fxq.capture_generation(generative.encoder_decoder(name), generative.seq2seq_inputs(name))


@cache
def converted(name: str, recipe: str = "dynamic") -> fx.GraphModule:
    """Return a model's Q/DQ graph for x86, calibrated with its inputs; it must not be changed."""
    _, inputs, graph = captured(name)
    prepared = fxq.prepare(graph, "x86", recipe)
    return fxq.convert(fxq.calibrate(prepared, [inputs], progress=False) if recipe == "static" else prepared)


@cache
def lowered(name: str, recipe: str = "dynamic") -> fx.GraphModule:
    """Return what `quantize` gives for a model on x86, for the instruction set of this machine; not to be changed."""
    return fxq.lower(converted(name, recipe))
