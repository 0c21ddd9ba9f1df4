"""The ARM core, cross-compiled and run under qemu: integers equal to the Python reference kernels' to the bit."""

import importlib
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture
def emulate(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(HERE), *sys.path])
    module = importlib.import_module("emulate")
    if missing := module.missing_tool():
        pytest.skip(f"{missing} is not installed")
    return module


def test_every_instruction_set_computes_what_the_reference_does(emulate, tmp_path):
    found, cases = emulate.emulate(tmp_path, *emulate.WAYS["quick"])
    assert cases > 60
    assert [row.isa for row in found] == ["neon_i8mm", "neon_dot", "neon"]
    assert all(row.sound and row.equal > 400_000 and row.close > 50_000 for row in found), found
    assert len({row.digest for row in found}) == 1, "the sets differ in integer products alone"
    # A CPU without matrix products takes dot products, one without these plain NEON.
    for cpu, chosen in (("neoverse-n1", "neon_dot"), ("cortex-a53", "neon")):
        assert emulate.emulated(cpu, tmp_path / "check") == (2, [f"chosen {chosen}", "no vectors"])


def test_the_loops_of_a_disassembly_are_counted(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(HERE), *sys.path])
    instructions = importlib.import_module("instructions")
    listing = """
0000000000000000 <strip>:
   0:\tmovi\tv0.4s, #0x0
   4:\tldr\tq1, [x0]
   8:\tsdot\tv0.4s, v1.16b, v2.4b[0]
   c:\tsdot\tv3.4s, v1.16b, v2.4b[1]
  10:\tb.ne\t4 <strip+0x4>
  14:\tcbnz\tx1, 0 <strip>
  18:\tret
"""
    (loop,) = instructions.inner_loops(listing, "sdot")
    assert (loop.instructions, loop.multiplying, loop.products) == (4, 2, 32)
    assert loop.cost == 4 / 32
    assert instructions.inner_loops(listing, "usmmla") == []
    assert instructions.inner_loops(listing, "sdot", "ldr") == []
