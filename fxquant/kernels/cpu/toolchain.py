"""How the C++ kernels are compiled on a system: its flags, and where OpenMP is."""

import platform
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch

_COMMON = ("-O3", "-std=c++20")
_TORCH = Path(torch.__file__).parent


class Flags(NamedTuple):
    """What the compiler and the linker are given."""

    compile: list[str]
    link: list[str]


def flags(system: str | None = None, headers: Iterable[Path] | None = None) -> Flags:
    """Return the flags for `system`, as `platform.system` names it; this one's by default.

    Apple's compiler has no OpenMP of its own. Where a folder of `headers` has its header, torch's copy of the library
    is linked; else the kernels run in one thread.
    """
    if (system or platform.system()) != "Darwin":
        return Flags([*_COMMON, "-fopenmp"], ["-fopenmp"])
    architecture = ["-arch", "arm64"]
    folders = headers or (_TORCH / "include", Path("/opt/homebrew/opt/libomp/include"))
    found = next((folder for folder in folders if (folder / "omp.h").exists()), None)
    if found is None:
        return Flags([*_COMMON, *architecture], architecture)
    library = _TORCH / "lib"
    return Flags(
        [*_COMMON, *architecture, "-Xpreprocessor", "-fopenmp", f"-I{found}"],
        [*architecture, f"-L{library}", "-lomp", f"-Wl,-rpath,{library}"],
    )
