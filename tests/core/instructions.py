"""What the inner loops of the ARM micro-kernels cost: instructions for each multiply-accumulate, from a disassembly.

No ARM processor runs here, so counts stand in for times. A loop is a backward branch and all that it spans, without
another loop inside.
"""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# Multiply-accumulates of one instruction on 128 bits.
PRODUCTS = {"smull": 8, "smull2": 8, "sdot": 16, "sudot": 16, "usmmla": 32}
# What each instruction set's loops have, as others in the same file finish the results, and what one of them has not.
LOOPS = {
    "neon": ("neon", "sadalp", None),
    "neon_dot": ("neon_dot", "sdot", None),
    "neon_i8mm, few rows": ("neon_i8mm", "usmmla", None),
    "neon_i8mm": ("neon_i8mm", "usmmla", "zip1"),
}
_FUNCTION = re.compile(r"^[0-9a-f]+ <(.*)>:$")
_INSTRUCTION = re.compile(r"^\s*([0-9a-f]+):\s+(\S+)\s*(.*)$")
_TARGET = re.compile(r"([0-9a-f]+) <")
Instruction = tuple[int, str, str]  # address, name, operands


class Loop(NamedTuple):
    """One turn of an inner loop: how many instructions, how many of these multiply, and multiply-accumulates."""

    instructions: int
    multiplying: int
    products: int

    @property
    def cost(self) -> float:
        """Instructions for each multiply-accumulate."""
        return self.instructions / self.products


def disassembled(objdump: str, program: Path) -> str:
    """Return an object file as objdump prints it."""
    command = [objdump, "-d", "--no-show-raw-insn", program]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def inner_loops(text: str, multiply: str, lacking: str | None = None) -> list[Loop]:
    """Return the loops of a disassembly that hold `multiply`: the most products first, and of equals the dearest.

    They have no instruction called `lacking`.
    """
    found = [loop for body in _functions(text) for loop in _loops(body, multiply, lacking)]
    return sorted(found, key=lambda loop: (-loop.products, -loop.instructions))


def _functions(text: str) -> Iterator[list[Instruction]]:
    body: list[Instruction] = []
    for line in text.splitlines():
        if _FUNCTION.match(line):
            yield body
            body = []
        elif match := _INSTRUCTION.match(line):
            body.append((int(match[1], 16), match[2], match[3]))
    yield body


def _loops(body: list[Instruction], multiply: str, lacking: str | None) -> Iterator[Loop]:
    spans = list(_spans(body))
    for first, last in spans:
        names = [name for address, name, _ in body if first <= address <= last]
        inner = not any((first, last) != other and first <= other[0] and other[1] <= last for other in spans)
        multiplying = [PRODUCTS[name] for name in names if name in PRODUCTS]
        if inner and multiply in names and not {"ret", "b", lacking} & set(names):
            yield Loop(len(names), len(multiplying), sum(multiplying))


def _spans(body: list[Instruction]) -> Iterator[tuple[int, int]]:
    """Yield where loops begin and end: at a branch to an earlier address of the same function."""
    for address, name, operands in body:
        target = _TARGET.search(operands) if name.startswith(("b", "cb", "tb")) else None
        if target and body[0][0] <= int(target[1], 16) < address:
            yield int(target[1], 16), address
