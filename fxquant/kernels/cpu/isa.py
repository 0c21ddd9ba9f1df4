"""Which instructions the kernels of a CPU use: the best that it has, or what a variable forces.

The names of `NATIVE` are our own C++ kernels. Of x86, `avx512_bf16` differs from `avx512_vnni` in attention and
weight-only linears, `avx_vnni` from `avx2` in integer ones. Those of `TORCH` are the operators of torch that stand in: `onednn` is its integer
GEMMs, where they are exact, and `portable` exact products in float32 blocks.
"""

import os
import platform

from fxquant.errors import ConfigError, suggest

VARIABLE = "FXQUANT_ISA"
NATIVE = ("avx512_bf16", "avx512_vnni", "avx_vnni", "avx2")
TORCH = ("onednn", "portable")
# Where the micro-kernels for a processor lie, by what Python calls it.
_FOLDERS = {"x86_64": "x86", "amd64": "x86"}


def micro_kernels() -> str | None:
    """Return the folder of `kernels` with this processor's micro-kernels, or None."""
    return _FOLDERS.get(platform.machine().lower())


def forced_isa() -> str | None:
    """Return what FXQUANT_ISA forces, or None; an unknown name is a `ConfigError`."""
    forced = os.environ.get(VARIABLE) or None
    if forced is not None and forced not in NATIVE + TORCH:
        raise ConfigError(f"{VARIABLE} = {forced!r} is not known: {suggest(forced, NATIVE + TORCH)}")
    return forced
