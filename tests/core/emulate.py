"""Cross-compile the C++ core for AArch64 and run its whole test suite under qemu, once for each kind of CPU.

    python tests/core/emulate.py [--quick | --sanitize] [--output FILE]

Needs aarch64-linux-gnu-g++ and qemu-aarch64 (Debian: g++-aarch64-linux-gnu, qemu-user). Takes about a minute;
`--quick` compiles without most optimizations, emulates the one CPU that has every instruction set, and leaves out row
programs and the count of instructions. `--sanitize` does the same under AddressSanitizer and
UndefinedBehaviorSanitizer, with row programs. Exits with 1 where anything differs from the Python reference kernels or
from plain loops, or where a CPU was given the wrong instruction set.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import instructions
import vectors

from fxquant.kernels.cpu.isa import micro_kernels
from fxquant.kernels.cpu.toolchain import core_folders, core_sources

HERE = Path(__file__).parent
PREFIX = os.environ.get("CROSS_PREFIX", "aarch64-linux-gnu-")
QEMU = os.environ.get("QEMU", "qemu-aarch64")
ROOT = Path("/usr") / PREFIX.rstrip("-")
# What each emulated CPU is to choose for itself.
CPUS = {
    "max": "neon_i8mm",
    "neoverse-n1": "neon_dot",
    "cortex-a76": "neon_dot",
    "cortex-a72": "neon",
    "cortex-a53": "neon",
}
SANITIZERS = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
# Flags, CPUs and programs of each way to run.
WAYS = {
    None: (["-O3"], list(CPUS), ["check", "exercise"]),
    "quick": (["-O1"], ["max"], ["check"]),
    "sanitize": (SANITIZERS, ["max"], ["check", "exercise"]),
}


class Result(NamedTuple):
    """What one instruction set did on one CPU."""

    cpu: str
    chosen: str
    isa: str
    equal: int
    close: int
    worst: float
    digest: str
    wrong: int
    programs: str

    @property
    def sound(self) -> bool:
        return self.wrong == 0 and self.programs != "failed" and self.chosen == CPUS[self.cpu]


def missing_tool() -> str | None:
    """Return the first tool that is not installed."""
    return next((tool for tool in (f"{PREFIX}g++", QEMU) if shutil.which(tool) is None), None)


def build(
    folder: Path, flags: list[str], programs: list[str], compiler: str = f"{PREFIX}g++", processor: str = "arm"
) -> None:
    """Compile the core and programs of this folder, which end up in `folder`."""
    folders = [*core_folders(processor), HERE]
    sources = [*core_sources(processor), *(HERE / f"{name}.cpp" for name in programs)]

    def compiled(source: Path) -> Path:
        made = folder / f"{source.stem}.o"
        include = [f"-I{each}" for each in folders]
        subprocess.run([compiler, "-std=c++20", *flags, *include, "-c", source, "-o", made], check=True)
        return made

    with ThreadPoolExecutor() as pool:  # what takes longest comes first
        made = list(pool.map(compiled, sorted(sources, key=lambda path: path.name != "isa_neon.cpp")))
    shared = [path for path in made if path.stem not in programs]
    for name in programs:
        command = [compiler, *flags, folder / f"{name}.o", *shared, "-pthread", "-o", folder / name]
        subprocess.run(command, check=True)


def emulated(cpu: str, *command: object) -> tuple[int, list[str]]:
    """Run a program on an emulated CPU; returns its exit code and its lines."""
    full = [QEMU, "-L", ROOT, "-cpu", cpu, *command]
    # The sanitizer looks for leaks by a system call that qemu does not have.
    environment = os.environ | {"ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run([str(word) for word in full], check=False, capture_output=True, text=True, env=environment)
    return done.returncode, (done.stdout + done.stderr).splitlines()


def results(cpu: str, folder: Path, programs: list[str]) -> list[Result]:
    """Run the programs on one CPU; what they complain of is printed."""
    code, lines = emulated(cpu, folder / "check", folder / "vectors.bin")
    complaints = [line for line in lines if not line.startswith(("neon", "chosen"))]
    if complaints or code not in (0, 1):
        sys.stderr.write("\n".join([*complaints, f"{cpu}: check ended with {code}\n"]))
    chosen = next((line.split()[1] for line in lines if line.startswith("chosen")), "none")
    exercised = emulated(cpu, folder / "exercise")[1] if "exercise" in programs else None
    found = []
    for name, equal, close, worst, digest, wrong in (line.split() for line in lines if line.startswith("neon")):
        state = "not run" if exercised is None else "clean" if f"{name}: clean" in exercised else "failed"
        found.append(Result(cpu, chosen, name, int(equal), int(close), float(worst), digest, int(wrong), state))
    return found


def emulate(folder: Path, flags: list[str], cpus: list[str], programs: list[str]) -> tuple[list[Result], int]:
    """Build and run all; returns what was found, and how many vectors there were."""
    cases = vectors.write(folder / "vectors.bin")
    build(folder, flags, programs)
    return [row for cpu in cpus for row in results(cpu, folder, programs)], cases


def floats_here(folder: Path, flags: list[str]) -> str:
    """Return the digest of AVX2's floats, whose lanes NEON's kernels follow, or why there is none."""
    if micro_kernels() != "x86" or shutil.which("g++") is None:
        return "not an x86 machine with g++"
    here = folder / "here"
    here.mkdir()
    build(here, [*flags, "-Wno-psabi"], ["check"], "g++", "x86")
    done = subprocess.run([here / "check", folder / "vectors.bin"], check=False, capture_output=True, text=True)
    rows = [line.split() for line in done.stdout.splitlines()]
    return next((row[4] for row in rows if row[0] == "avx2"), "this CPU has no avx2")


def costs(folder: Path) -> dict[str, instructions.Loop]:
    """Return the largest inner loops of each instruction set's linear."""
    objdump = f"{PREFIX}objdump"
    return {
        name: instructions.inner_loops(instructions.disassembled(objdump, folder / f"isa_{isa}.o"), *sought)[0]
        for name, (isa, *sought) in instructions.LOOPS.items()
    }


def version(*command: str) -> str:
    """Return the first line that a tool prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[0]


def table(found: list[Result], flags: list[str], cases: int) -> str:
    """Return what was found as text."""
    lines = [
        f"{version(f'{PREFIX}g++', '--version')}, {' '.join(flags)}",
        version(QEMU, "--version"),
        f"{datetime.now(UTC):%Y-%m-%d}; {cases} vectors of the Python reference kernels",
        "",
        "cpu          chosen     instruction set  equal to the bit  in a bound  worst/bound    floats  wrong  programs",
    ]
    for cpu, chosen, isa, equal, close, worst, digest, wrong, programs in found:
        row = f"{cpu:<12} {chosen:<10} {isa:<16} {equal:>16} {close:>11} {worst:>12.2f} {digest:>9} {wrong:>6}"
        lines.append(f"{row}  {programs}")
    return "\n".join(lines) + "\n"


def appendix(folder: Path, flags: list[str]) -> str:
    """Return the floats of this machine, and what the inner loops cost, as text."""
    lines = [f"avx2 on this machine: {floats_here(folder, flags):>57}", ""]
    lines.append("instruction set      largest inner loop: instructions  multiplying  multiply-accumulates  per MAC")
    lines += [
        f"{isa:<20} {loop.instructions:>33} {loop.multiplying:>12} {loop.products:>21} {loop.cost:>8.3f}"
        for isa, loop in costs(folder).items()
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Return 0 where all is equal, or within its bound, on every CPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--quick", dest="how", action="store_const", const="quick", help="-O1 and one CPU")
    how.add_argument("--sanitize", dest="how", action="store_const", const="sanitize", help="under sanitizers, one CPU")
    parser.add_argument("--output", type=Path, help="where to keep the table")
    options = parser.parse_args()
    if missing := missing_tool():
        sys.stderr.write(f"{missing} is not installed; on Debian: apt install g++-aarch64-linux-gnu qemu-user\n")
        return 2
    flags, cpus, programs = WAYS[options.how]
    with tempfile.TemporaryDirectory() as name:
        found, cases = emulate(Path(name), flags, cpus, programs)
        text = table(found, flags, cases) + ("" if options.how else appendix(Path(name), flags))
    sys.stdout.write(text)
    if options.output:
        options.output.write_text(text)
    return 0 if all(row.sound for row in found) and {row.cpu for row in found} == set(cpus) else 1


if __name__ == "__main__":
    sys.exit(main())
