"""Which instructions the kernels of a CPU use: the best that it has, or what a variable forces.

The names of `NATIVE` are our own C++ kernels. Of x86, `avx512_bf16` differs from `avx512_vnni` in attention and
weight-only linears, `avx_vnni` from `avx2` in integer ones; of ARM, those with dot products (`neon_dot`) and matrix
products (`neon_i8mm`) differ from `neon` in integer linears. The names of `TORCH` are what stands in: `onednn` and
`qnnpack` are torch's integer GEMMs, where they are exact, and `portable` exact products in float32 blocks.
"""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

from fxquant.errors import ConfigError, suggest

VARIABLE = "FXQUANT_ISA"
# Our own kernels, by the folder of `kernels` that has a processor's micro-kernels.
PROCESSORS = {
    "x86": ("avx512_bf16", "avx512_vnni", "avx_vnni", "avx2"),
    "arm": ("neon_i8mm", "neon_dot", "neon"),
}
TORCH = ("onednn", "qnnpack", "portable")
_FOLDERS = {"x86_64": "x86", "amd64": "x86", "aarch64": "arm", "arm64": "arm"}  # by what Python calls the processor


def micro_kernels() -> str | None:
    """Return the folder of `kernels` with this processor's micro-kernels, or None."""
    return _FOLDERS.get(platform.machine().lower())


NATIVE = PROCESSORS.get(micro_kernels() or "", ())
_inside: list[str] = []  # what `forcing` forces, the innermost last


@contextmanager
def forcing(name: str) -> Iterator[None]:
    """Force instructions for what this process lowers and runs inside, as FXQUANT_ISA does for all of it."""
    _inside.append(name)
    try:
        yield
    finally:
        _inside.pop()


def torch_stands_in() -> bool:
    """Say whether `forcing` asks for operators of torch."""
    return bool(_inside) and _inside[-1] in TORCH


def forced_isa() -> str | None:
    """Return what `forcing` or FXQUANT_ISA forces, or None; `ConfigError` where it is unknown, or not of this CPU."""
    forced = _inside[-1] if _inside else os.environ.get(VARIABLE) or None
    here = PROCESSORS.get(micro_kernels() or "", ()) + TORCH
    known = tuple(name for names in PROCESSORS.values() for name in names) + TORCH
    if forced is None or forced in here:
        return forced
    if forced in known:
        raise ConfigError(
            f"{VARIABLE} = {forced!r} is not of this processor, {platform.machine()}: {suggest(forced, here)}"
        )
    raise ConfigError(f"{VARIABLE} = {forced!r} is not known: {suggest(forced, known)}")
