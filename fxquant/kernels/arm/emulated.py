"""Products of the ARM core on a machine of another kind: compiled across, and run by an emulator of the processor.

Needs a cross compiler and qemu (Debian: g++-aarch64-linux-gnu, qemu-user). The program is built once and cached.
"""

import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor
from torch.nn import functional

from fxquant.kernels.cpu.native import cache_folder
from fxquant.kernels.cpu.packed import DEPTH, column_sums, pack
from fxquant.kernels.cpu.toolchain import KERNELS, core_files, core_folders, core_sources, fingerprint

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
_FLAGS = ("-std=c++20", "-O1", "-static", "-pthread")


def missing_tool() -> str | None:
    """Return what is not installed, or None."""
    absent = [tool for tool in (COMPILER, EMULATOR) if shutil.which(tool) is None]
    return f"{' and '.join(absent)} {'is' if len(absent) == 1 else 'are'} not installed" if absent else None


def multiply(isa: str, q: Tensor, weight: Tensor) -> Tensor:
    """Return Σ_k q·weight as int32 (M, N) for q (M, K) uint8 or int8 and weight (N, K) int8, by an instruction set.

    Raises:
        RuntimeError: the program could not be built, or failed; what it said is in the text.
    """
    signed = q.dtype is torch.int8
    stored = (q.to(torch.int16) + 128).to(torch.uint8) if signed else q
    padded = functional.pad(stored, (0, -q.shape[1] % DEPTH))
    sizes = torch.tensor([len(q), len(weight), padded.shape[1] // DEPTH, 128 if signed else 0], dtype=torch.int32)
    given = b"".join(each.numpy().tobytes() for each in (sizes, padded, pack(weight), column_sums(weight)))
    found = _run([EMULATOR, "-cpu", "max", str(_program()), isa], given)
    return torch.frombuffer(bytearray(found), dtype=torch.float32).reshape(len(q), len(weight)).to(torch.int32)


@cache
def _program() -> Path:
    """Return the program, building it first where the cache has none."""
    main = KERNELS / "arm" / "multiply.cpp"
    program = cache_folder() / f"multiply_aarch64_{fingerprint([main, *core_files('arm')], _FLAGS)}"
    program.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{program}.lock"):
        if not program.exists():
            with tempfile.TemporaryDirectory(dir=program.parent) as folder:
                made = Path(folder) / program.name
                include = [f"-I{each}" for each in core_folders("arm")]
                _run([COMPILER, *_FLAGS, *include, str(main), *map(str, core_sources("arm")), "-o", str(made)], b"")
                os.replace(made, program)  # noqa: PTH105  Path.replace is not atomic on all systems
    return program


def _run(command: list[str], given: bytes) -> bytes:
    done = subprocess.run(command, input=given, capture_output=True, check=False)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip() or "nothing"
        raise RuntimeError(f"{command[0]} ended with {done.returncode} and said: {said}")
    return done.stdout
