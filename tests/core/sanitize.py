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
from fxquant.kernels.cpu.toolchain import core_folders, core_sources

HERE = Path(__file__).parent
FLAGS = ["-std=c++20", "-O2", "-g", "-Wno-psabi", "-fno-omit-frame-pointer", "-fsanitize=address,undefined"]


def main() -> int:
    """Return the exit code of the compiler, or of the program."""
    processor = str(micro_kernels())
    sources = [HERE / "exercise.cpp", *core_sources(processor)]
    include = [f"-I{each}" for each in core_folders(processor)]
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "exercise"
        build = [os.environ.get("CXX", "c++"), *FLAGS, "-fno-sanitize-recover=all", *include]
        code = subprocess.run([*build, *sources, "-pthread", "-o", program], check=False).returncode
        return code or subprocess.run([program], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
