"""Build the C++ core without torch under AddressSanitizer and UndefinedBehaviorSanitizer, and run it on odd shapes.

    python tests/core/sanitize.py

Takes about a minute. It prints a line for each instruction set, and stops with the sanitizer's report at the first
access outside of a buffer or undefined operation.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from fxquant.kernels.cpu.isa import micro_kernels

HERE = Path(__file__).parent
KERNELS = HERE.parents[1] / "fxquant" / "kernels"
FOLDERS = [KERNELS / "cpu" / "csrc", KERNELS / str(micro_kernels()) / "csrc"]
FLAGS = ["-std=c++20", "-O2", "-g", "-Wno-psabi", "-fno-omit-frame-pointer", "-fsanitize=address,undefined"]


def main() -> int:
    """Return the exit code of the compiler, or of the program."""
    found = [path for folder in FOLDERS for path in sorted(folder.glob("*.cpp"))]
    sources = [HERE / "exercise.cpp", *(path for path in found if not path.name.startswith("binding"))]
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "exercise"
        build = [os.environ.get("CXX", "c++"), *FLAGS, "-fno-sanitize-recover=all", *(f"-I{each}" for each in FOLDERS)]
        code = subprocess.run([*build, *sources, "-pthread", "-o", program], check=False).returncode
        return code or subprocess.run([program], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
