"""Where a graph computes: the device of its tensors, which the tensors that its ops make have to be on, too."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, fx

from fxquant.errors import ConfigError, FxQuantError, first_line
from fxquant.graph import edit
from fxquant.graph.rebuild import tensor_key


def two_devices(tensors: Mapping[str, Tensor]) -> str | None:
    """Return which two tensors are on different devices, None where all are together; single values may be anywhere."""
    where: dict[torch.device, str] = {}
    for name, tensor in tensors.items():
        if tensor.ndim:
            where.setdefault(tensor.device, name)
    if len(where) < 2:
        return None
    (one, first), (other, second), *_ = where.items()
    return f"{first!r} is on {one} and {second!r} on {other}"


def device_of(gm: fx.GraphModule) -> torch.device | None:
    """Return the device of a graph's parameters and buffers; None where it has none.

    Raises:
        FxQuantError: they are on different devices; names one of each.
    """
    tensors = edit.constants(gm)
    both = two_devices(tensors)
    if both is not None:
        raise FxQuantError(f"the graph lies on two devices: {both}; move all of it to one, as by graph.to('cpu')")
    return next((tensor.device for tensor in tensors.values()), None)


def read_device(device: str | torch.device) -> torch.device:
    """Return the device of that name, or raise `ConfigError` for one that torch does not know or cannot reach here."""
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"device = {str(device)!r} cannot be used here: {first_line(error)}") from error
    return chosen


def move(graphs: Iterable[fx.GraphModule], device: torch.device) -> None:
    """Put every tensor of graphs, which are the caller's own, onto a device; what graphs share they go on sharing."""
    moved: dict[object, Tensor] = {}
    for gm in graphs:
        for target, tensor in edit.constants(gm).items():
            if tensor.device != device:
                key = tensor_key(tensor)
                if key not in moved:
                    moved[key] = tensor.detach().to(device)
                edit.set_tensor(gm, target, moved[key])
        make_on(gm, device)


def make_on(gm: fx.GraphModule, device: torch.device) -> int:
    """Let ops that say where they make a tensor make it on `device`; return how many made it elsewhere."""
    count = 0
    for node in gm.graph.nodes:
        stated = [index for index, value in enumerate(edit.arguments(node)) if isinstance(value, torch.device)]
        for index in stated if node.op == "call_function" else ():
            count += edit.arguments(node)[index] != device
            edit.set_argument(node, index, device)
    if count:
        gm.recompile()
    return count
