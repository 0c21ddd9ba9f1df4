"""CUDA graphs: a model's kernels are recorded once for each shape of its inputs, and launched by one call from then on.

With small batches a GPU waits for the launches of a few hundred kernels; a recorded graph needs one. It reads and
writes the addresses that it was recorded with: inputs are copied to buffers of its own, and results from there.
"""

import copy
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxquant.errors import ConfigError, FxQuantError, FxQuantWarning, InputError, suggest

OUTPUTS = ("copied", "shared")
WARM = 2  # calls before recording, at which kernels are compiled, chosen and loaded
PLAIN = (bool, int, float, str, torch.dtype, torch.device, type(None))

Replay = Callable[[], None]
# A function, and the device that it runs on → its result, whose memory each replay writes anew, and the replay.
Record = Callable[[Callable[[], Any], torch.device], tuple[Any, Replay]]


@dataclass(frozen=True)
class Recorded:
    """A recorded call: the buffers of its inputs, its result, and what runs it again; or why it cannot be recorded."""

    inputs: tuple[Tensor, ...] = ()
    result: Any = None
    replay: Replay | None = None


class Recorder:
    """Records what runs on a CUDA device; the graphs of one recorder share their scratch memory."""

    def __init__(self) -> None:
        self._pools: dict[torch.device, Any] = {}

    def __call__(self, run: Callable[[], Any], device: torch.device) -> tuple[Any, Replay]:
        """Return the result of `run`, and a function that computes it anew in the same memory."""
        with torch.cuda.device(device):
            current = torch.cuda.current_stream()
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(current)
            with torch.cuda.stream(side):
                for _ in range(WARM):
                    run()
            current.wait_stream(side)
            pool = self._pools.setdefault(device, torch.cuda.graph_pool_handle())
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                result = run()
        return result, graph.replay


class CudaGraphs(nn.Module):
    """A module that is called as the one it holds, and replays recorded kernels; made by `recorded`."""

    def __init__(self, module: nn.Module, max_graphs: int, outputs: str, record: Record) -> None:
        super().__init__()
        self.module = module
        self.max_graphs, self.outputs = max_graphs, outputs
        self._record, self._lock = record, threading.RLock()
        self._recorded: OrderedDict[Any, Recorded] = OrderedDict()
        self._places = list(_places(module))
        self._addresses: tuple[int, ...] = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> "CudaGraphs":
        """Return a copy of the module with graphs of its own, to be recorded."""
        return CudaGraphs(copy.deepcopy(self.module, memo), self.max_graphs, self.outputs, Recorder())

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the module returns, in memory of the caller's own unless `outputs` is "shared"."""
        leaves, shape = pytree.tree_flatten((args, dict(sorted(kwargs.items()))))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if not tensors or _is_traced(tensors):
            return self.module(*args, **kwargs)
        key = shape, tuple(_key(leaf) for leaf in leaves)
        with self._lock, torch.no_grad():
            self._forget_moved()
            self._check_devices(tensors)
            found = self._recorded.get(key)
            if found is None:
                found = self._made(key, leaves, shape)
            self._recorded.move_to_end(key)
            if found.replay is None:
                return self.module(*args, **kwargs)
            for buffer, tensor in zip(found.inputs, tensors, strict=True):
                buffer.copy_(tensor, non_blocking=True)
            found.replay()
            return pytree.tree_map_only(Tensor, torch.clone, found.result) if self.outputs == "copied" else found.result

    def _forget_moved(self) -> None:
        """Drop all graphs if a tensor of the module has moved: they would read where it was."""
        addresses = tuple(0 if place.get(name) is None else place[name].data_ptr() for place, name in self._places)
        if addresses != self._addresses:
            self._recorded.clear()
            self._addresses = addresses

    def _check_devices(self, tensors: list[Tensor]) -> None:
        own = {place[name].device for place, name in self._places[:1] if place.get(name) is not None}
        found = {tensor.device for tensor in tensors}
        if len(found | own) > 1:
            at = f"; the module is on {_names(own)}" if own else ""
            raise InputError(
                f"a CUDA graph needs all inputs on one device, that of its module; found {_names(found)}{at}"
            )

    def _made(self, key: Any, leaves: list[Any], shape: Any) -> Recorded:
        """Record a call, and drop the graph that was not used for longest where there are too many."""
        buffers = [torch.clone(leaf, memory_format=torch.contiguous_format) if isinstance(leaf, Tensor) else leaf
                   for leaf in leaves]  # fmt: skip
        args, kwargs = pytree.tree_unflatten(buffers, shape)
        inputs = tuple(buffer for buffer in buffers if isinstance(buffer, Tensor))
        while len(self._recorded) >= self.max_graphs:
            self._recorded.popitem(last=False)
        try:
            _check_plain("an input is", leaves)
            result, replay = self._record(lambda: self.module(*args, **kwargs), inputs[0].device)
            _check_plain("the result holds", pytree.tree_leaves(result))
            made = Recorded(inputs, result, replay)
        except (InputError, ConfigError):
            raise  # the call itself is wrong
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            sizes = ", ".join(str(list(each.shape)) for each in inputs)
            warnings.warn(
                f"calls with inputs {sizes} run without a CUDA graph: {type(error).__name__}: {lines[0]}",
                FxQuantWarning,
                stacklevel=4,
            )
            made = Recorded()
        self._recorded[key] = made
        return made


def recorded(module: nn.Module, max_graphs: int, outputs: str) -> CudaGraphs:
    """Return `module` with its calls recorded."""
    return CudaGraphs(module, max_graphs, outputs, Recorder())


def check(module: nn.Module, max_graphs: int, outputs: str) -> None:
    """Raise `ConfigError` or `FxQuantError` where the calls of `module` cannot be recorded so, or not here."""
    if outputs not in OUTPUTS:
        raise ConfigError(f"outputs = {outputs!r}: {suggest(outputs, OUTPUTS)}")
    if not isinstance(max_graphs, int) or max_graphs < 1:
        raise ConfigError(f"max_graphs = {max_graphs!r}: expected a positive integer")
    if not torch.cuda.is_available():
        raise FxQuantError("CUDA graphs need a CUDA device, and torch finds none here; call the graph as it is")
    found = {tensor.device for tensor in (*module.parameters(), *module.buffers())}
    if any(device.type != "cuda" for device in found):
        raise FxQuantError(
            f"CUDA graphs need a module on a CUDA device; this one has tensors on {_names(found)}. Move it first: "
            'lowered.to("cuda")'
        )


def _places(module: nn.Module) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield where each parameter and buffer is kept: a dictionary and the name in it."""
    for part in module.modules():
        for kept in (part._parameters, part._buffers):
            yield from ((kept, name) for name in kept)


def _key(leaf: Any) -> Any:
    """Return what a recorded call depends on of an input: of a tensor all but its values, of a number its value."""
    if isinstance(leaf, Tensor):
        return tuple(leaf.shape), leaf.dtype, leaf.device
    return (type(leaf), leaf) if isinstance(leaf, PLAIN) else type(leaf)


def _is_traced(tensors: list[Tensor]) -> bool:
    """Say whether the call is being traced, or recorded by someone else."""
    if torch.compiler.is_compiling() or any(type(tensor) not in (Tensor, nn.Parameter) for tensor in tensors):
        return True
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def _check_plain(what: str, leaves: list[Any]) -> None:
    for leaf in leaves:
        if not isinstance(leaf, (Tensor, *PLAIN)):
            raise FxQuantError(f"{what} a {type(leaf).__name__}, whose tensors cannot be found and copied")


def _names(devices: set[torch.device]) -> str:
    return ", ".join(sorted(map(str, devices)))
