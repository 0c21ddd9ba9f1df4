"""A transformers model whose forward is a graph: its tensors dropped, its class, configuration and generate its own."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from fxquant.errors import InputError
from fxquant.generation.generator import WAYS
from fxquant.generation.skeleton import put_on
from fxquant.graph.calling import name_arguments
from fxquant.graph.example import forward_parameters
from fxquant.integrations.hf.example import filled
from fxquant.integrations.hf.loss import decoder_inputs, label_names, loss_of
from fxquant.program import Program

CHILD = "fxquant"  # the name of the graphs among a model's modules, and of their tensors in a checkpoint


@dataclass(frozen=True)
class Quantized:
    """A lowered graph or Program and what its model knew: values for inputs left out, and which loss it computes."""

    graph: fx.GraphModule | Program
    defaults: dict[str, int]
    loss: str | None


def strip(model: nn.Module) -> None:
    """Drop every tensor of a model: only its modules, which hold its code, stay."""
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for name in table:
                table[name] = None
        # transformers would fill what is gone with random numbers
        module._is_hf_initialized = True  # type: ignore[assignment]
    model.all_tied_weights_keys = {}  # type: ignore[assignment]


def install(model: Any, quantized: Quantized) -> None:
    """Let graphs compute what a model's modules did; its tensors are dropped."""
    graph = quantized.graph
    device = next(tensor.device for tensor in (*graph.parameters(), *graph.buffers()))
    forward = GraphForward(model, quantized)
    strip(model)
    put_on(model, device)
    model.add_module(CHILD, graph)
    model.forward = forward
    way = WAYS.get(graph.adapter) if isinstance(graph, Program) else None
    if isinstance(graph, Program) and way is not None and way.encoder is not None:
        model.get_encoder().forward = way.encoder(graph.graphs)
    model._weight_conversions = []  # of names in the checkpoint; those of graphs are what they are


class GraphForward:
    """Called in the place of a model's forward: graphs, and where there are labels transformers' loss."""

    def __init__(self, model: Any, quantized: Quantized) -> None:
        self.model, self.quantized = model, quantized
        self.parameters = forward_parameters(model)
        self.labels = label_names(model)
        self.__signature__ = inspect.signature(model.forward)
        graph = quantized.graph
        self.call: Callable[..., Any] = graph
        if isinstance(graph, Program) and graph.adapter in WAYS:
            self.call = WAYS[graph.adapter].forward(graph.graphs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the model's output, with `loss` where labels are given.

        Raises:
            InputError: an argument that the graph was not captured with, labels of a model whose loss is not known, or
                a step of training.
        """
        if self.model.training and torch.is_grad_enabled():
            raise InputError(
                "the model is quantized for inference, and was called to train: call model.eval(), or train the float "
                "model"
            )
        given = name_arguments(self.parameters, args, kwargs, "those of the model's forward")
        labels = {name: value for name in self.labels if (value := given.pop(name, None)) is not None}
        count = given.pop("num_items_in_batch", None)
        as_tuple = given.pop("return_dict", None) is False
        asked = {name: value for name, value in given.items() if value is not None and value is not False}
        if labels:
            self._check_loss(labels)
            asked = decoder_inputs(self.model, asked, labels)
        outputs = self.call(**filled(asked, self.quantized.defaults))
        if labels and self.quantized.loss is not None:
            loss = loss_of(self.quantized.loss, self.model.config, outputs, labels, count)
            outputs = type(outputs)(**{"loss": loss, **outputs})
        return outputs.to_tuple() if as_tuple else outputs

    def _check_loss(self, labels: dict[str, Any]) -> None:
        if self.quantized.loss is None or sorted(labels) != sorted(self.labels):
            name = type(self.model).__name__
            raise InputError(
                f"{', '.join(labels)} cannot be taken: how a {name} computes its loss is not known to fxquant; leave "
                "labels out, and compute the loss from the outputs"
            )
