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
from fxquant.graph.host import copied
from fxquant.graph.modes import inference, quiet_torch
from fxquant.graph.reach import narrowed, replaced
from fxquant.graph.rebuild import ROOT, rebuild
from fxquant.graph.signature import Signature, signature_of
from fxquant.graph.ways import OWN_ATTENTION, Way, ways_of

Limits = Callable[[nn.Module, fx.GraphModule, Example], str | None]


def capture(model: nn.Module, example_inputs: Any, *, dynamic: bool = True) -> fx.GraphModule:
    """Return the model's whole forward as one graph of ATen ops, in eval mode, outside autograd and without a cache.

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
    gm, _ = capture_whole(model, checked_example(model, example_inputs), dynamic)
    warn_of_fixed(gm, dynamic)
    return gm


def checked_example(model: nn.Module, example_inputs: Any) -> Example:
    """Return the example inputs taken apart, where model and inputs are fit to be captured."""
    _check_model(model)
    example = read_example(model, example_inputs)
    _check_devices(model, example)
    return example


def capture_whole(
    model: nn.Module, example: Example, dynamic: bool, limits: Limits = narrowed
) -> tuple[fx.GraphModule, str | None]:
    """Return the graph of the whole model, and why it takes fewer inputs than the model does, None where it does not.

    The ways of `ways_of` are tried in order. A graph that takes all that the model takes is returned at once; else the
    first that there is. `limits` says what a graph does not take.

    Raises:
        CaptureError: every way fails, or forward puts new buffers into the model.
    """
    check_kept(model, example)
    failed: list[dict[str, str]] = []
    narrow: tuple[fx.GraphModule, str] | None = None
    first: Failure | None = None
    for way in ways_of(model):
        gm = export_whole(model, example, dynamic, way)
        if isinstance(gm, Failure):
            first = first or gm
            failed.append({"rung": way.name, "reason": gm.text})
            continue
        edit.mark(gm, capture={"rung": way.name, "failed": list(failed)}, config=_config(model))
        limit = limits(model, gm, example) if dynamic else None
        if limit is None:
            return gm, None
        failed.append({"rung": way.name, "reason": limit})
        narrow = narrow or (gm, limit)
    if narrow is not None:
        return narrow
    assert first is not None, "each way failed"
    _check_runs(model, example)
    raise CaptureError(_advised(model, first, dynamic))


def check_kept(model: nn.Module, example: Example) -> None:
    """Raise where forward leaves a model with another buffer, which a graph could not."""
    name = replaced(model, example)
    if name is not None:
        raise CaptureError(f"forward puts another tensor in the place of {name!r}: a graph has no state of its own")


def export_whole(
    model: nn.Module, example: Example, dynamic: bool, way: Way = OWN_ATTENTION
) -> fx.GraphModule | Failure:
    """Export by one way: with the example widened, and where that fails or sticks at the wide size, as it was given."""
    wide = example.widened() if dynamic else example
    failure: Failure | None = None
    for each in (wide, example) if wide is not example else (example,):
        own = copied(model)  # forward may change modules and attributes
        with inference(own, way.attention), way.preparation(own):
            try:
                gm = rebuild(*_export(own, each, dynamic))
            except FxQuantError:
                raise
            except Exception as error:  # torch.export raises what the model raises, and kinds of its own
                failure = failure or locate(error, own)
                continue
        if each is example or not _is_stuck(signature_of(gm), wide, example):
            return gm
    assert failure is not None, "the example as given was tried last"
    return failure


def _advised(model: nn.Module, failure: Failure, dynamic: bool) -> str:
    advice = ["capture with dynamic=False (fixed shapes)"] if dynamic else []
    advice += ['load the model with attn_implementation="eager"'] if len(ways_of(model)) > 1 else []
    advice += ["capture the submodules that can be, one by one"]
    return f"{_explain(model, 'capture failed', failure)}. What may work: {'; '.join(advice)}"


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
    model = copied(model)
    try:
        with inference(model):
            model(*args, **kwargs)
    except Exception as error:
        text = _explain(model, "the model itself fails on example_inputs", locate(error, model))
        raise InputError(f"{text}. Give inputs that the model runs on") from error


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


def warn_of_fixed(gm: fx.GraphModule, dynamic: bool, stacklevel: int = 3) -> None:
    """Report the dimensions of a dynamic capture that look like a batch or a sequence and cannot vary."""
    for leaf in signature_of(gm).leaves if dynamic else ():
        sequence = len(leaf.shape) == 3 or (len(leaf.shape) == 2 and not leaf.dtype.is_floating_point)
        for dimension in range(min(len(leaf.shape), 2 if sequence else 1)):
            size = leaf.shape[dimension]
            if isinstance(size, int):
                kind = "sequence" if dimension else "batch"
                text = (
                    f"dimension {dimension} ({kind}) of {leaf.name!r} became fixed at {size}: the model's code needs it"
                )
                warnings.warn(text, FxQuantWarning, stacklevel=stacklevel)


def _config(model: nn.Module) -> dict[str, Any] | None:
    """Return the configuration of a transformers model as JSON-able data, less the place it was loaded from."""
    config: Any = vars(model).get("config")
    if not hasattr(config, "to_dict"):
        return None
    data: dict[str, Any] = json.loads(json.dumps(config.to_dict(), default=str))
    data.pop("_name_or_path", None)
    return {**data, "architectures": [type(model).__name__]}
