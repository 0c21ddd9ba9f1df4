"""Every Triton kernel compiles for the GPUs that it is meant for, down to machine code, without one of them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")
KERNELS = ["rows", "rows_bfloat16", "rows_fp8", "gemm", "gemm_gated", "fp8", "sums", "attention", "attention_packed"]
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024}


@pytest.fixture(scope="module")
def compiled():
    """Return what became of each kernel, compiled by a process that does not interpret."""
    script = Path(__file__).with_name("compile_ahead.py")
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


@pytest.mark.parametrize("kernel", KERNELS)
def test_machine_code(compiled, kernel):
    made = [each for each in compiled if each["kernel"] == kernel]
    assert made
    for each in made:
        assert each["cubin"] > 0
        assert each["shared"] <= SHARED_MEMORY[each["capability"]]
        assert each["mma_s8"] == kernel.startswith("gemm"), "products of bytes run on tensor cores"


def test_quantization_divides_as_ieee_754_does(compiled):
    """A quotient off by one place could round to another integer."""
    assert all(each["div"] > 0 for each in compiled if each["kernel"] in ("rows", "rows_bfloat16", "gemm_gated"))
    assert not any(each["approximate"] for each in compiled if each["kernel"].startswith("rows"))


def test_products_and_sums_are_joined_only_where_written(compiled):
    joined = ("gemm", "fp8", "sums")
    assert all((each["fma"] > 0) == each["kernel"].startswith(joined) for each in compiled)
