"""What the C++ kernels are compiled of, and how on a system: its flags, and where OpenMP is."""

import hashlib
import platform
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import torch

KERNELS = Path(str(files("fxquant.kernels")))
_COMMON = ("-O3", "-std=c++20")
_TORCH = Path(torch.__file__).parent


class Flags(NamedTuple):
    """What the compiler and the linker are given."""

    compile: list[str]
    link: list[str]


def core_folders(processor: str) -> list[Path]:
    """Return where the core of all CPUs lies, and the micro-kernels of a processor ("x86", "arm")."""
    return [KERNELS / "cpu" / "csrc", KERNELS / processor / "csrc"]


def core_files(processor: str) -> list[Path]:
    """Return the sources and headers for a processor, those of the bindings to torch among them."""
    return [path for folder in core_folders(processor) for path in sorted(folder.iterdir())]


def core_sources(processor: str) -> list[Path]:
    """Return the sources that need no torch: all but the bindings."""
    return [path for path in core_files(processor) if path.suffix == ".cpp" and not path.name.startswith("binding")]


def library_sources(processor: str) -> list[Path]:
    """Return what the library for torch is compiled of: the core, and the bindings where they stand together."""
    return [*core_sources(processor), *(path for path in core_files(processor) if path.match("bindings_*.cpp"))]


def fingerprint(files: Iterable[Path], *settings: object) -> str:
    """Return 16 digits that change with the names and contents of `files`, and with what else decides a build."""
    digest = hashlib.sha256(repr(settings).encode())
    for path in files:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


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
