"""`capture`: a model becomes an fx graph of ATen ops, called as the model was. The only caller of torch.export."""

import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from fxquant.errors import CaptureError, FxQuantError, InputError
from fxquant.graph import edit, structure
from fxquant.graph.checks import checked_example
from fxquant.graph.example import Example
from fxquant.graph.failure import Failure, locate
from fxquant.graph.host import copied
from fxquant.graph.modes import inference, quiet_torch
from fxquant.graph.reach import narrowed, replaced, warn_of_fixed
from fxquant.graph.rebuild import ROOT, rebuild
from fxquant.graph.signature import Signature, signature_of
from fxquant.graph.ways import OWN_ATTENTION, Way, ways_of

Reach = Callable[[nn.Module, fx.GraphModule, Example], str | None]


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


def capture_whole(
    model: nn.Module, example: Example, dynamic: bool, reach: Reach = narrowed
) -> tuple[fx.GraphModule, str | None]:
    """Return the graph of the whole model, and why it takes fewer inputs than the model does, None where it does not.

    The ways of `ways_of` are tried in order. A graph that takes all that the model takes is returned at once; else the
    first that there is. `reach` says what a graph does not take.

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
        limit = reach(model, gm, example) if dynamic else None
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


def export_flat(
    graph: fx.GraphModule, example: tuple[Tensor, ...], sizes: tuple[dict[int, Any], ...]
) -> ExportedProgram:
    """Return the exported program of a graph that is called with flat tensors, some of whose `sizes` vary."""
    with torch.no_grad(), quiet_torch():
        return torch.export.export(graph, example, dynamic_shapes=sizes, strict=False)


def _explain(model: nn.Module, what: str, failure: Failure) -> str:
    inside = f"module {failure.path!r}" if failure.path else "the model's own forward"
    where = f"{inside} ({type(model.get_submodule(failure.path)).__name__})"
    line = f" at {failure.line}" if failure.line else ""
    return f"{what} in {where}{line}: {failure.reason}"


def _config(model: nn.Module) -> dict[str, Any] | None:
    """Return the configuration of a transformers model as JSON-able data, less the place it was loaded from."""
    config: Any = vars(model).get("config")
    if not hasattr(config, "to_dict"):
        return None
    data: dict[str, Any] = json.loads(json.dumps(config.to_dict(), default=str))
    data.pop("_name_or_path", None)
    return {**data, "architectures": [type(model).__name__]}
