"""The instruction sets of our own C++ kernels as devices: each that this CPU has, and why the others are not here."""

import platform
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

from fxquant.kernels.cpu import native
from fxquant.kernels.cpu.isa import NATIVE
from fxquant.kernels.devices import Device


@contextmanager
def on(name: str) -> Iterator[None]:
    """Run the C++ kernels on one instruction set inside."""
    before = native.use_isa("")
    native.use_isa(name)
    try:
        yield
    finally:
        native.use_isa(before)


def native_devices(names: Iterable[str]) -> Iterator[Device]:
    """Yield a device for each instruction set."""
    for name in names:
        yield Device(f"cpu {name}", missing=_missing(name), entered=partial(on, name))


def _missing(name: str) -> str | None:
    if name not in NATIVE:
        return f"this CPU is {platform.machine()}"
    if not native.available():
        return f"the C++ kernels cannot be used on this machine ({platform.machine()})"
    try:
        with on(name):
            return None
    except RuntimeError:
        return f"this CPU has no {name}"
