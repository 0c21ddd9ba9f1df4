"""What a graph of a model would not do: take other batches and lengths, or keep what forward changes."""

import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, fx, nn

from fxquant.errors import FxQuantWarning, InputError
from fxquant.graph.example import Example
from fxquant.graph.host import copied
from fxquant.graph.modes import inference
from fxquant.graph.signature import signature_of


def narrowed(model: nn.Module, gm: fx.GraphModule, example: Example) -> str | None:
    """Return why a graph refuses a batch that the model runs on, or None where no such batch was found."""
    for probe in probes(example):
        args, kwargs = example.arguments(probe)
        try:
            signature_of(gm).flatten(tuple(args), kwargs)
        except InputError as error:
            if _runs(model, example, probe):
                return str(error)
    return None


def replaced(model: nn.Module, example: Example) -> str | None:
    """Return the path of a buffer for which forward puts another in its place; an export undoes that unsaid."""
    own = copied(model)
    before = dict(own.named_buffers())
    args, kwargs = example.arguments(example.tensors)
    try:
        with inference(own):
            own(*args, **kwargs)
            return next((name for name, now in own.named_buffers() if _differs(before.get(name), now)), None)
    except Exception:  # models raise anything; what cannot run is said where it is captured
        return None


def _differs(before: Tensor | None, now: Tensor) -> bool:
    return before is None or (before is not now and (before.shape != now.shape or not torch.equal(before, now)))


def probes(example: Example) -> Iterator[tuple[Tensor, ...]]:
    """Yield inputs like those of the example: more rows and tokens, many tokens, a single one."""
    for rows, tokens in ((1, 2), (0, 4), (2, 0)):
        found = tuple(_resized(tensor, rows, tokens) for tensor in example.tensors)
        if any(a.shape != b.shape for a, b in zip(found, example.tensors, strict=True)):
            yield found


def _resized(tensor: Tensor, rows: int, times: int) -> Tensor:
    """Return a tensor with more rows, and `times` as many tokens and one; one token where that is no time."""
    if tensor.ndim and rows:
        tensor = torch.cat([tensor, tensor[:1].expand(rows, *tensor.shape[1:])])
    if tensor.ndim == 3 or (tensor.ndim == 2 and not tensor.is_floating_point()):
        tensor = torch.cat([*[tensor] * times, tensor[:, :1]], 1)
    return tensor


def _runs(model: nn.Module, example: Example, probe: tuple[Tensor, ...]) -> bool:
    args, kwargs = example.arguments(probe)
    model = copied(model)
    try:
        with inference(model):
            model(*args, **kwargs)
    except Exception:  # models raise anything; what they cannot run no graph has to
        return False
    return True


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
