"""Where Triton kernels can run: on NVIDIA GPUs from compute capability 8.0 on, and on CPUs in Triton's interpreter.

Every op of this set has a reference in torch's own arithmetic beside its Triton kernel. Tensors on a CPU take the
reference; with TRITON_INTERPRET=1 in the environment, which Triton reads once, they take the kernel itself.
"""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache, wraps
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from fxquant.errors import InputError
from fxquant.kernels.cuda.device import OPTIONS as OPTIONS  # noqa: PLC0414  for launches
from fxquant.kernels.library import define

INTERPRETER = "TRITON_INTERPRET"
# Products of 8-bit integers on tensor cores, and bfloat16, came with Ampere.
LEAST_CAPABILITY = (8, 0)
FLOAT8_CAPABILITY = (8, 9)  # Ada's and Hopper's


@cache
def installed() -> bool:
    """Say whether Triton can be imported."""
    return find_spec("triton") is not None


def interpreting() -> bool:
    """Say whether Triton kernels run on CPU tensors, in Triton's interpreter."""
    return installed() and os.environ.get(INTERPRETER) == "1"


@cache
def capability(device: torch.device) -> tuple[int, int]:
    """Return the compute capability of a GPU."""
    return torch.cuda.get_device_capability(device)


def refusal(device: torch.device) -> str | None:
    """Return why a graph whose tensors are on `device` cannot have the kernels of this set; None where it can.

    On a CPU it can: the ops have references, so what runs on a GPU can be lowered, saved and checked without one.
    """
    if device.type == "cpu":
        return None
    if device.type != "cuda":
        return f"the CUDA kernels run on cuda and, as references, on cpu; the tensors are on {device}"
    if torch.version.hip is not None:
        return "the CUDA kernels are for NVIDIA GPUs; this torch is built for ROCm"
    if not installed():
        return "Triton is not installed: pip install triton"
    if capability(device) < LEAST_CAPABILITY:
        found, least = (".".join(map(str, each)) for each in (capability(device), LEAST_CAPABILITY))
        return f"the CUDA kernels need compute capability {least}; {device} has {found}"
    return None


def float8_refusal(device: torch.device) -> str | None:
    """Return why a device has no float8 numbers; None where it has them, and of a CPU, which takes references."""
    if device.type != "cuda" or capability(device) >= FLOAT8_CAPABILITY:
        return None
    found, least = (".".join(map(str, each)) for each in (capability(device), FLOAT8_CAPABILITY))
    return f"products of float8 need compute capability {least}; {device} has {found}"


def takes_triton(x: Tensor) -> bool:
    """Say whether an op on `x` runs its Triton kernel, and not its reference."""
    if x.device.type == "cuda":
        return refusal(x.device) is None
    return x.device.type == "cpu" and interpreting()


def on_device_of(x: Tensor) -> AbstractContextManager[None]:
    """Make the GPU that x is on the current one, on which kernels are launched; of a CPU's tensor, do nothing."""
    guard: AbstractContextManager[None] = torch.cuda.device_of(x)  # type: ignore[no-untyped-call]
    return guard


def held(tensor: Tensor | None) -> Tensor | None:
    """Return a tensor as a kernel reads it, one value behind the other; None as it is."""
    return None if tensor is None else tensor.contiguous()


def define_with_triton(
    schema: str, reference: Callable[..., Any], triton: Callable[..., Any], fake: Callable[..., Any]
) -> None:
    """Define the op `schema`, whose first argument is a tensor: by `triton` where that runs, else by `reference`.

    Raises (the op):
        InputError: its tensors are on different devices; names each and where it is.
    """
    name = schema.partition("(")[0]

    @wraps(reference)
    def run(x: Tensor, *rest: Any) -> Any:
        check_devices(name, x, rest)
        return (triton if takes_triton(x) else reference)(x, *rest)

    define(schema, run, fake)


def check_devices(name: str, x: Tensor, rest: tuple[Any, ...]) -> None:
    """Raise for tensors that are not on the device of the first: a kernel would read a wild address."""
    if all(each.device == x.device for each in rest if isinstance(each, Tensor)):
        return
    schema = getattr(torch.ops.fxquant, name).default._schema
    given = zip(schema.arguments, (x, *rest), strict=True)
    places = ", ".join(f"{argument.name} on {each.device}" for argument, each in given if isinstance(each, Tensor))
    raise InputError(
        f"fxquant::{name} got tensors on different devices: {places}. Give the graph inputs on the device that it was "
        f"lowered on; a Q/DQ graph can be moved with .to(device) before fxquant.lower"
    )
