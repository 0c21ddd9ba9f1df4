"""Calibration: run batches through a prepared graph so that its observers find the ranges, and merge what was found."""

import copy
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxquant.errors import CalibrationError, FxQuantError, FxQuantWarning, InputError
from fxquant.graph import edit
from fxquant.graph.calling import read_call
from fxquant.observers import ObservationError, Observer

Prepared = TypeVar("Prepared", bound=nn.Module)
Batch = Mapping[str, Any] | Sequence[Any] | Tensor

# Work that ends sooner than this many seconds shows no progress.
PATIENCE = 1.0
# The most dimensions of an observer's buffer, per-token ranges of high-rank tensors included.
MOST_DIMENSIONS = 8


def calibrate(prepared: Prepared, batches: Iterable[Batch], *, progress: bool = True) -> Prepared:
    """Run every batch through `prepared` without gradients and return it, its observers holding the ranges.

    Calling again continues where the last call ended. A graph without observers, as the dynamic recipe makes, comes
    back at once with a `FxQuantWarning`.

    Args:
        prepared: the result of `prepare`, a GraphModule or a Program.
        batches: an iterable of calls of the model: each a dict of keyword arguments, a tuple or list of positional
            ones, or the one tensor that the model takes. It is iterated once, and no batch is kept.
        progress: show a bar on stderr when it takes more than a second.

    Raises:
        CalibrationError: there are no batches; one is of another type, holds NaN or Inf, has wrong keys or shapes, or
            makes the graph fail; an observer meets NaN or Inf, or nothing but zeros. The batch is named by its index,
            the observer by its place; all observers are then as they were before this call.
    """
    found = observers_of(prepared)
    if not found:
        warnings.warn(
            "the graph has no observers, so there is nothing to calibrate: ranges of a dynamic or weight-only recipe "
            'are found without batches; prepare with recipe="static" to calibrate',
            FxQuantWarning,
            stacklevel=2,
        )
        return prepared
    _check_iterable(batches)
    with _restored_on_failure(found):
        _run_all(prepared, batches, progress)
        for observer in found.values():
            if observer.observed:
                _check(prepared, observer)
    return prepared


def observers_of(prepared: nn.Module) -> dict[str, Observer]:
    """Return the observers that the graphs of `prepared` call, by their dotted paths, in the order of the calls."""
    return {name: observer for name, observer, _ in _sites(prepared)}


def merge_observers(prepared: nn.Module, others: Iterable[nn.Module]) -> None:
    """Take into the observers of `prepared` what those of its copies, calibrated elsewhere, have seen.

    Raises:
        CalibrationError: a copy has other observers than `prepared`, or saw other numbers of channels.
        ConfigError: observers at one place differ in their specs.
    """
    own = observers_of(prepared)
    for other in others:
        theirs = observers_of(other)
        if theirs.keys() != own.keys():
            lone = sorted(theirs.keys() ^ own.keys())[0]
            raise CalibrationError(f"observer {lone!r} is in one graph only: merge copies of one prepared graph")
        with _restored_on_failure(own):
            for name, observer in own.items():
                observer.merge(theirs[name])


def merge_distributed(prepared: nn.Module, group: dist.ProcessGroup | None = None) -> None:
    """Give the observers of every process of `group` what those of all its processes have seen.

    Call it on every process, each with a copy of one prepared graph, on the device that the group's backend serves.

    Raises:
        CalibrationError: torch.distributed is not running, or the processes saw other numbers of channels.
    """
    if not dist.is_available() or not dist.is_initialized():
        raise CalibrationError("torch.distributed is not running: call torch.distributed.init_process_group first")
    for observer in observers_of(prepared).values():
        buffers = dict(observer.named_buffers())
        gathered = [_all_gather(buffer, observer.low.device, group) for buffer in buffers.values()]
        # Every process merges in the order of ranks, so that all end with the same bits.
        states = [dict(zip(buffers, parts, strict=True)) for parts in zip(*gathered, strict=True)]
        copies = [copy.deepcopy(observer) for _ in states]
        for each, state in zip(copies, states, strict=True):
            each.load_state_dict(state)
        first, *rest = copies
        for each in rest:
            first.merge(each)
        observer.load_state_dict(first.state_dict())


def _all_gather(buffer: Tensor, device: torch.device, group: dist.ProcessGroup | None) -> list[Tensor]:
    """Return the buffer of each rank; ranks differ in its size where some have seen no batch."""
    world = dist.get_world_size(group)
    shape = torch.full((MOST_DIMENSIONS,), -1, dtype=torch.int64, device=device)
    shape[: buffer.ndim] = torch.tensor(buffer.shape, dtype=torch.int64)
    shapes = [torch.empty_like(shape) for _ in range(world)]
    dist.all_gather(shapes, shape, group=group)
    sizes = [tuple(size for size in each.tolist() if size >= 0) for each in shapes]
    padded = torch.zeros(max(torch.Size(size).numel() for size in sizes), dtype=buffer.dtype, device=device)
    padded[: buffer.numel()] = buffer.flatten()
    parts = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(parts, padded, group=group)
    return [part[: torch.Size(size).numel()].view(size) for part, size in zip(parts, sizes, strict=True)]


def _sites(prepared: nn.Module) -> Iterator[tuple[str, Observer, fx.Node]]:
    """Yield the path, the observer and the calling node of every call of an observer in the graphs of `prepared`."""
    for prefix, module in prepared.named_modules():
        for node in module.graph.nodes if isinstance(module, fx.GraphModule) else ():
            called = module.get_submodule(str(node.target)) if node.op == "call_module" else None
            if isinstance(called, Observer):
                yield f"{prefix}.{node.target}".removeprefix("."), called, node


def _place(prepared: nn.Module, observer: nn.Module) -> str:
    for name, each, node in _sites(prepared):
        if each is observer:
            source = f" of %{node.all_input_nodes[0].name}" if node.all_input_nodes else ""
            return f"observer {name!r}{source} in {edit.path_of(node) or 'the model itself'}"
    return "an observer outside the graphs"


@contextmanager
def _restored_on_failure(found: Mapping[str, Observer]) -> Iterator[None]:
    """Put the observers back as they are now if what runs inside fails or is interrupted."""
    before = [{name: buffer.clone() for name, buffer in observer.named_buffers()} for observer in found.values()]
    try:
        yield
    except BaseException:
        for observer, state in zip(found.values(), before, strict=True):
            observer.load_state_dict(state)
        raise


def _check(prepared: nn.Module, observer: Observer) -> None:
    try:
        observer.check()
    except ObservationError as error:
        raise CalibrationError(f"{_place(prepared, observer)}: {error}") from None


def _check_iterable(batches: object) -> None:
    if isinstance(batches, Mapping | Tensor | str) or not isinstance(batches, Iterable):
        raise CalibrationError(
            f"batches is one {type(batches).__name__}: expected an iterable of batches, each a dict, a tuple or a "
            f"tensor; put a single batch into a list"
        )


def _run_all(prepared: nn.Module, batches: Iterable[Batch], progress: bool) -> None:
    ran = 0
    with _bar(batches) if progress else nullcontext(_no_bar) as advance:
        for index, batch in enumerate(batches):
            args, kwargs = _arguments(batch, index)
            _check_finite(args, kwargs, index)
            _run(prepared, args, kwargs, index)
            advance()
            ran += 1
    if ran == 0:
        raise CalibrationError("batches is empty: calibration needs at least one batch; an iterator serves one call")


def _arguments(batch: object, index: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    try:
        return read_call(batch)
    except InputError as error:
        raise CalibrationError(f"batch {index} {error}") from None


def _check_finite(args: tuple[Any, ...], kwargs: dict[str, Any], index: int) -> None:
    named = {**{f"argument {position}": value for position, value in enumerate(args)}, **kwargs}
    for name, value in named.items():
        for leaf in pytree.tree_leaves(value):
            if isinstance(leaf, Tensor) and leaf.is_floating_point() and not bool(leaf.isfinite().all()):
                nans, infinities = int(leaf.isnan().sum()), int(leaf.isinf().sum())
                raise CalibrationError(
                    f"batch {index}: {name} holds {nans} NaN and {infinities} Inf among {leaf.numel()} values; "
                    f"calibration needs finite ones"
                )


def _run(prepared: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], index: int) -> None:
    try:
        with torch.no_grad():
            prepared(*args, **kwargs)
    except ObservationError as error:
        raise CalibrationError(f"batch {index}: {_place(prepared, error.observer)}: {error}") from None
    except FxQuantError as error:
        raise CalibrationError(f"batch {index}: {error}") from error
    except Exception as error:
        what = (str(error).strip().splitlines() or ["no message"])[0]
        raise CalibrationError(f"batch {index}: the graph failed with {type(error).__name__}: {what}") from error


def _no_bar() -> None:
    """Stand in for the advance of a bar that is not shown."""


@contextmanager
def _bar(batches: Iterable[Batch]) -> Iterator[Callable[[], None]]:
    """Give a function that counts one batch on a bar, which appears on stderr after `PATIENCE` seconds."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bar = Progress(*columns, console=Console(stderr=True), redirect_stdout=False, redirect_stderr=False)
    try:
        total = len(batches) if isinstance(batches, Sized) else None
    except TypeError:  # a DataLoader over a stream has a length that raises
        total = None
    task = bar.add_task("calibrating", total=total)
    timer = threading.Timer(PATIENCE, bar.start)
    timer.daemon = True
    timer.start()
    try:
        yield lambda: bar.advance(task)
    finally:
        timer.cancel()
        timer.join()
        if bar.live.is_started:
            bar.stop()
