"""The loss of a model whose forward is a graph: computed by transformers' own functions from the graph's outputs."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.loss.loss_utils import LOSS_MAPPING
from transformers.utils.generic import find_labels

from fxquant.graph.modes import inference

KINDS = (
    "ForCausalLM",
    "ForImageClassification",
    "ForMaskedLM",
    "ForQuestionAnswering",
    "ForSequenceClassification",
    "ForTokenClassification",
)
_SPAN = ["start_positions", "end_positions"]


def label_names(model: Any) -> list[str]:
    """Return the arguments of forward that are labels."""
    return [str(name) for name in find_labels(type(model))]  # type: ignore[no-untyped-call]


def loss_of(kind: str, config: Any, outputs: Mapping[str, Any], labels: Mapping[str, Any], count: Any = None) -> Tensor:
    """Return the loss, a scalar, of outputs.

    Args:
        kind: what `kind_of` returned for the model.
        config: the model's; its `problem_type` decides, or is decided, as in the model's own forward.
        outputs: with `logits`, or the logits of a span's ends.
        labels: by the names of `label_names`.
        count: the `num_items_in_batch` of a Trainer, by which the sum over a batch is divided; None: the mean.
    """
    function: Any = LOSS_MAPPING[kind]
    if kind == "ForQuestionAnswering":
        span: Tensor = function(outputs["start_logits"], outputs["end_logits"], **labels, num_items_in_batch=count)
        return span
    logits = outputs["logits"]
    named = {"logits": logits, "pooled_logits": logits, "config": config, "vocab_size": logits.shape[-1]}
    found: Tensor = function(**named, **labels, num_items_in_batch=count)
    return found


def decoder_inputs(model: Any, given: dict[str, Any], labels: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call with the decoder's ids, which encoder-decoders make of labels."""
    shift = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if given.get("decoder_input_ids") is not None or "labels" not in labels or shift is None:
        return given
    return {**given, "decoder_input_ids": shift(labels=labels["labels"])}


def kind_of(model: Any, example: Mapping[str, Any]) -> str | None:
    """Return which of transformers' losses a float model computes, None where it is none of them.

    It is tried out on the example, with labels made up: a model with a loss of its own gets none.
    """
    names = label_names(model)
    kind = _likely(model, names)
    if kind is None:
        return None
    problem = model.config.problem_type
    try:
        with inference(model):
            inputs = {name: value for name, value in example.items() if name != "decoder_input_ids"}
            labels = _labels(kind, model.config, inputs)
            own = model(**inputs, **labels)
            free = model(**decoder_inputs(model, inputs, labels))
            found = loss_of(kind, model.config, free, labels)
            return kind if torch.allclose(own.loss, found, rtol=1e-3, atol=1e-5) else None
    except (KeyError, RuntimeError, TypeError, ValueError, AttributeError):  # it takes labels of another form
        return None
    finally:
        model.config.problem_type = problem


def _likely(model: Any, names: list[str]) -> str | None:
    if names == _SPAN:
        return "ForQuestionAnswering"
    if names != ["labels"]:
        return None
    if model.config.is_encoder_decoder and model.can_generate():
        return "ForMaskedLM"  # labels are the tokens themselves: the decoder's ids are those shifted
    kind = model.loss_type if model.loss_type is not None or not model.can_generate() else "ForCausalLM"
    return kind if kind in KINDS else None


def _labels(kind: str, config: Any, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    main = next(iter(inputs.values()))
    rows = torch.arange(main.shape[0], device=main.device)
    if kind == "ForQuestionAnswering":
        return {"start_positions": rows * 0, "end_positions": rows * 0 + 1}
    if kind in ("ForCausalLM", "ForMaskedLM"):
        return {"labels": inputs["input_ids"]}
    if kind == "ForTokenClassification":
        return {"labels": inputs["input_ids"] % config.num_labels}
    return {"labels": rows.float() if config.num_labels == 1 else rows % config.num_labels}
