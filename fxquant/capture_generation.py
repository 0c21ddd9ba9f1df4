"""`capture_generation`: a model that generates becomes a Program whose `generate` runs on graphs."""

from typing import Any

from torch import nn

from fxquant.errors import CaptureError
from fxquant.generation.decoder import capture_decoder
from fxquant.generation.encoder_decoder import capture_encoder_decoder
from fxquant.generation.skeleton import skeleton
from fxquant.graph.example import read_example
from fxquant.program import Program


def generates(model: nn.Module) -> bool:
    """Say whether `model` is of transformers and has a generate of its own, with a cache."""
    can = getattr(model, "can_generate", None)
    return callable(can) and bool(can()) and hasattr(getattr(model, "config", None), "use_cache")


def capture_generation(model: nn.Module, example_inputs: Any) -> Program:
    """Return the steps of a generating model as graphs, behind the model's own generation code.

    The program is called as the model is, and has `generate`. Its graphs take every batch and length from one token
    on, and a cache or none.

    Args:
        model: a transformers model that can generate; left as it is.
        example_inputs: as for `capture`: `input_ids`, `attention_mask` and `position_ids` of a decoder, the source (ids
            or features) of an encoder-decoder, and as you like `attention_mask` and `decoder_input_ids`.

    Raises:
        CaptureError: the model does not generate, the example has other inputs, or its step cannot be captured.
        InputError: the example inputs are not those of the model's forward.
    """
    if not generates(model):
        raise CaptureError(f"a {type(model).__name__} does not generate with a cache: capture it with fxquant.capture")
    example = read_example(model, example_inputs)
    config: Any = model.config
    if config.is_encoder_decoder:
        return Program(capture_encoder_decoder(model, example), "encoder-decoder", skeleton(model))
    return Program(capture_decoder(model, example), "decoder", skeleton(model))
