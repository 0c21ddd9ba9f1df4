"""Our own C++ kernels: compiled at first use, kept in a cache, and put behind the `fxquant::packed_*` ops.

Where they cannot be had (another processor, no compiler, a failed build) a warning says so once, and lowering takes
torch's integer GEMMs instead; the ledger names the kernels it took.
"""

import os
import shutil
import tempfile
import warnings
from functools import cache
from pathlib import Path

import torch
from filelock import FileLock
from rich.console import Console

from fxquant.errors import ConfigError, FxQuantWarning
from fxquant.kernels.cpu import (
    cached_attention,
    cross_attention,
    packed,
    packed_conv,
    rotary,
    row_program,
    unpad,
    weight_only,
)
from fxquant.kernels.cpu.isa import PROCESSORS, VARIABLE, forced_isa, micro_kernels, torch_stands_in
from fxquant.kernels.cpu.toolchain import core_files, core_folders, fingerprint, flags, library_sources

__all__ = [
    "available",
    "cached_attention",
    "cross_attention",
    "packed",
    "packed_conv",
    "rotary",
    "row_program",
    "unpad",
    "use_isa",
    "weight_only",
]

CACHE = "FXQUANT_CACHE"


def available() -> bool:
    """Load the C++ kernels, building them first where the cache has none; say whether they can be used here.

    Raises:
        ConfigError: FXQUANT_ISA names an instruction set that this CPU has not.
    """
    return not torch_stands_in() and _usable()


@cache
def _usable() -> bool:
    forced = forced_isa()
    native = PROCESSORS.get(micro_kernels() or "", ())
    if not native or (forced is not None and forced not in native):
        return False
    try:
        _load()
    except (OSError, RuntimeError, ImportError) as error:
        reason = _first_line(error)
        warnings.warn(
            f"the C++ kernels cannot be used, so torch's slower operators run instead: {reason}",
            FxQuantWarning,
            stacklevel=3,
        )
        return False
    try:
        return bool(use_isa(forced or ""))
    except RuntimeError as error:
        raise ConfigError(f"{VARIABLE} = {forced!r}: {_first_line(error)}") from None


def use_isa(name: str) -> str:
    """Switch the C++ kernels to the instruction set called `name` ("" leaves it), and return the one in use.

    Raises:
        RuntimeError: this CPU has it not.
    """
    chosen: str = torch.ops.fxquant.cpu_isa(name)
    return chosen


def cache_folder() -> Path:
    """Return where built kernels are kept: $FXQUANT_CACHE, else fxquant in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fxquant"
    return Path(os.environ.get(CACHE) or default)


def _load() -> None:
    """Load the library from the cache, or build it, which loads it; a library must not be loaded twice."""
    library = _library()
    if not library.exists() and _built_here(library):
        return
    torch.ops.load_library(library)  # type: ignore[no-untyped-call]


def _built_here(library: Path) -> bool:
    """Build the library, unless another process does so meanwhile: those that start together wait for the first."""
    library.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{library}.lock"):
        if library.exists():
            return False
        _build(str(micro_kernels()), library)
        return True


def _library() -> Path:
    """Return where the library for these sources, this torch and these flags is kept."""
    abi = (torch.__version__, torch.compiled_with_cxx11_abi())
    return cache_folder() / f"fxquant_{fingerprint(core_files(str(micro_kernels())), *abi, flags())}.so"


def _build(processor: str, library: Path) -> None:
    """Compile into a folder of this process's own, then rename: two processes cannot meet half a file."""
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        raise OSError(f"no C++ compiler: {compiler!r} is not found; install g++, or set CXX")
    from torch.utils.cpp_extension import load  # noqa: PLC0415  takes half a second, and is needed once

    console = Console(stderr=True)
    with (
        tempfile.TemporaryDirectory(dir=library.parent) as folder,
        console.status("fxquant: compiling the CPU kernels (once, a minute or less)"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        load(
            "fxquant_kernels",
            [str(path) for path in library_sources(processor)],
            extra_cflags=flags().compile,
            extra_ldflags=flags().link,
            extra_include_paths=[str(folder) for folder in core_folders(processor)],
            build_directory=folder,
            is_python_module=False,
        )
        # torch adds a version to the name where this process has built others, so the file is looked for.
        (built,) = Path(folder).glob("*.so")
        os.replace(built, library)  # noqa: PTH105  Path.replace is not atomic on all systems


def _first_line(error: Exception) -> str:
    """Return the line of a compiler's output that says what is wrong."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if " error: " in line or "fatal" in line]
    return (telling or lines or [type(error).__name__])[0]
