"""Whether a model and its example inputs are fit to be captured."""

from typing import Any

import torch
from torch import Tensor, nn

from fxquant.errors import CaptureError, InputError
from fxquant.graph.example import Example, read_example
from fxquant.graph.place import two_devices


def checked_example(model: nn.Module, example_inputs: Any) -> Example:
    """Return the example inputs taken apart, where model and inputs are fit to be captured."""
    _check_model(model)
    example = read_example(model, example_inputs)
    _check_devices(model, example)
    return example


def _check_one_device(model: nn.Module) -> None:
    buffers = {name: buffer for name, buffer in model.named_buffers() if not buffer.is_meta}
    both = two_devices({**dict(model.named_parameters()), **buffers})
    if both is not None:
        raise CaptureError(f"the model lies on two devices: {both}; move all of it to one, as by model.to('cpu')")


def _check_devices(model: nn.Module, example: Example) -> None:
    """Raise unless the inputs are where the model's tensors are."""
    where = {tensor.device: name for name, tensor in (*model.named_buffers(), *model.named_parameters())}
    for name, tensor in zip(example.names, example.tensors, strict=True):
        if where and tensor.device not in where:
            device, parameter = next(iter(where.items()))
            text = f"example input {name!r} is on {tensor.device}, and the model on {device} ({parameter!r})"
            raise InputError(f"{text}: move it with .to({str(device)!r})")


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise CaptureError(f"capture takes a torch.nn.Module, not a {type(model).__name__}")
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise CaptureError("the model is of TorchScript, whose code cannot be captured: give the module it was made of")
    _check_one_device(model)
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise CaptureError(f"parameter {name!r} is on the meta device and has no values: load the weights first")
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            raise CaptureError(
                f"parameter {name!r} is {parameter.dtype}, not torch.float32: convert with model.float()"
            )
        # the extremes cost no copy of the weights, and NaN passes through them
        if parameter.is_floating_point() and parameter.numel() and not _is_finite(parameter):
            raise CaptureError(f"parameter {name!r} contains NaN or infinity: the checkpoint is damaged")
    for name, buffer in model.named_buffers():
        # masks may hold -inf
        if buffer.is_floating_point() and not buffer.is_meta and bool(torch.isnan(buffer).any()):
            raise CaptureError(f"buffer {name!r} contains NaN: the checkpoint is damaged")


def _is_finite(tensor: Tensor) -> bool:
    low, high = torch.aminmax(tensor.detach())
    return bool(torch.isfinite(low) and torch.isfinite(high))
