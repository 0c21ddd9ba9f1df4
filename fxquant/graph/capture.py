"""`capture`: a model becomes an fx graph of ATen ops, called as the model was. The only caller of torch.export."""

import json
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from fxquant.errors import CaptureError, FxQuantError, FxQuantWarning, InputError
from fxquant.graph import edit, structure
from fxquant.graph.example import Example, read_example
from fxquant.graph.failure import Failure, locate
from fxquant.graph.modes import configs, inference, quiet_torch
from fxquant.graph.rebuild import ROOT, rebuild
from fxquant.graph.signature import Signature, signature_of


def capture(model: nn.Module, example_inputs: Any, *, dynamic: bool = True) -> fx.GraphModule:
    """Return the model's forward as a graph of ATen ops, in eval mode, outside autograd and without a cache.

    The graph takes the model's arguments and returns the model's structure. It shares the model's tensors; the model
    itself is left as it was.

    Args:
        model: any module with float32 parameters.
        example_inputs: a dict of keyword arguments, a tuple of positional ones, or a tensor. Arguments that are not
            tensors become constants of the graph.
        dynamic: let the sizes of the inputs differ from the example's, as far as the model's code allows it.

    Raises:
        CaptureError: the model cannot be captured; the text names the module and the line where it failed.
        InputError: the example inputs are not those of the model's forward.

    Warns:
        FxQuantWarning: a batch or sequence dimension became fixed.
    """
    _check_model(model)
    example = read_example(model, example_inputs)
    gm, record = _climb(model, example, dynamic)
    edit.mark(gm, capture=record, config=_config(model))
    if dynamic:
        _warn_of_fixed(signature_of(gm), example)
    return gm


def _climb(model: nn.Module, example: Example, dynamic: bool) -> tuple[fx.GraphModule, dict[str, str]]:
    """Try the ways to export, the one that keeps most of the model first; report the first failure if all fail."""
    wide = example.widened() if dynamic else example
    first: Failure | None = None
    for attention in _attentions(model):
        for each in (wide, example) if wide is not example else (example,):
            with inference(model, attention):
                try:
                    gm = rebuild(*_export(model, each, dynamic))
                except FxQuantError:
                    raise
                except Exception as error:  # torch.export raises what the model raises, and kinds of its own
                    first = first or locate(error, model)
                    continue
            if each is example or not _is_stuck(signature_of(gm), wide, example):
                note = {"note": f"before: {first.reason}"} if first else {}
                return gm, {"rung": f"{attention or 'own'} attention", **note}
    assert first is not None, "the example as given was tried last"
    _check_runs(model, example)
    advice = ["capture with dynamic=False (fixed shapes)"] if dynamic else []
    advice += ['load the model with attn_implementation="eager"'] if len(_attentions(model)) > 1 else []
    advice += ["capture the submodules that can be, one by one"]
    raise CaptureError(f"{_explain(model, 'capture failed', first)}. What may work: {'; '.join(advice)}") from None


def _is_stuck(signature: Signature, wide: Example, example: Example) -> bool:
    """Say whether a dimension that was widened became fixed: then the size that was given is the better one."""
    pairs = zip(signature.leaves, wide.tensors, example.tensors, strict=True)
    return any(
        isinstance(size, int) and size == after != before
        for leaf, a, b in pairs
        for size, after, before in zip(leaf.shape, a.shape, b.shape, strict=True)
    )


def _check_runs(model: nn.Module, example: Example) -> None:
    """Raise where the model itself fails on the example: then no way of capture is to blame."""
    args, kwargs = example.arguments(example.tensors)
    try:
        with inference(model):
            model(*args, **kwargs)
    except Exception as error:
        text = _explain(model, "the model itself fails on example_inputs", locate(error, model))
        raise InputError(f"{text}. Give inputs that the model runs on") from error


def _attentions(model: nn.Module) -> list[str | None]:
    """Return the attention implementations to try; None is the model's own."""
    own = {config._attn_implementation for config in configs(model, "_attn_implementation")}
    return [None] if own <= {"eager", None} else [None, "eager"]


class _Entry(nn.Module):
    """What is exported: flat tensors in, flat tensors out, so that export never sees the model's own structures.

    `report` is called with the structure of the output, as export undoes what forward does to attributes.
    """

    def __init__(self, model: nn.Module, example: Example, report: Callable[[structure.Data], None]) -> None:
        super().__init__()
        self.training = False  # as the model's modules are; not all of them take eval()
        self.add_module(ROOT, model)
        self.example = example
        self.report = report

    def forward(self, *leaves: Tensor) -> tuple[Any, ...]:
        """Return the leaves of the model's output."""
        args, kwargs = self.example.arguments(leaves)
        value = self.get_submodule(ROOT)(*args, **kwargs)
        try:
            found, data = structure.describe(value, "the model's output")
        except InputError as error:
            raise CaptureError(str(error)) from None
        self.report(data)
        return tuple(found)


def _export(model: nn.Module, example: Example, dynamic: bool) -> tuple[ExportedProgram, Example, structure.Data]:
    """Return the exported program, the example and the structure of the model's output."""
    outputs: list[structure.Data] = []
    entry = _Entry(model, example, outputs.append)
    sizes = tuple(dict.fromkeys(range(t.ndim), Dim.AUTO) for t in example.tensors)
    shapes = {"leaves": sizes} if dynamic else None
    with quiet_torch():
        program = torch.export.export(entry, example.tensors, dynamic_shapes=shapes, strict=False)
    return program, example, outputs[-1]


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise CaptureError(f"capture takes a torch.nn.Module, not a {type(model).__name__}")
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


def _explain(model: nn.Module, what: str, failure: Failure) -> str:
    inside = f"module {failure.path!r}" if failure.path else "the model's own forward"
    where = f"{inside} ({type(model.get_submodule(failure.path)).__name__})"
    line = f" at {failure.line}" if failure.line else ""
    return f"{what} in {where}{line}: {failure.reason}"


def _warn_of_fixed(signature: Signature, example: Example) -> None:
    """Report the dimensions that look like a batch or a sequence and cannot vary."""
    for leaf, tensor in zip(signature.leaves, example.tensors, strict=True):
        sequence = len(leaf.shape) == 3 or (len(leaf.shape) == 2 and not tensor.is_floating_point())
        for dimension in range(min(len(leaf.shape), 2 if sequence else 1)):
            size = leaf.shape[dimension]
            if isinstance(size, int):
                kind = "sequence" if dimension else "batch"
                text = (
                    f"dimension {dimension} ({kind}) of {leaf.name!r} became fixed at {size}: the model's code needs it"
                )
                warnings.warn(text, FxQuantWarning, stacklevel=3)


def _config(model: nn.Module) -> dict[str, Any] | None:
    """Return the configuration of a transformers model as JSON-able data, less the place it was loaded from."""
    config: Any = vars(model).get("config")
    if not hasattr(config, "to_dict"):
        return None
    data: dict[str, Any] = json.loads(json.dumps(config.to_dict(), default=str))
    data.pop("_name_or_path", None)
    return {**data, "architectures": [type(model).__name__]}
