"""What the x86 kernels can run on: each instruction set of our own, and the operators of torch that stand in."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from fxquant.kernels.cpu.devices import native_devices
from fxquant.kernels.cpu.isa import PROCESSORS, forcing
from fxquant.kernels.devices import Device, devices
from fxquant.kernels.x86.isa import gemms_are_exact, isa


@contextmanager
def _on_torch(name: str) -> Iterator[None]:
    """Let operators of torch stand in for the C++ kernels inside."""
    with forcing(name):
        isa.cache_clear()
        try:
            yield
        finally:
            isa.cache_clear()


@devices("x86")
def x86_devices() -> Iterator[Device]:
    """Yield the instruction sets and roads of the x86 kernels."""
    yield from native_devices(PROCESSORS["x86"])
    for name in ("onednn", "portable"):
        inexact = name == "onednn" and not gemms_are_exact()
        missing = "torch's 8-bit products saturate, or are not there, on this machine" if inexact else None
        yield Device(f"torch {name}", missing=missing, entered=partial(_on_torch, name))
