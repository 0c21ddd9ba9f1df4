"""Triton's interpreter for tests without a GPU.

Triton decides while it is imported whether kernels, its own library's too, are to be interpreted. So it is imported
here, before any test; the ops go on taking their references, but in tests that ask for `interpreted`.
"""

import os
from importlib.util import find_spec

import pytest
import torch

INTERPRETER = "TRITON_INTERPRET"
GPU, TRITON = torch.cuda.is_available(), find_spec("triton") is not None

if TRITON and not GPU:
    os.environ[INTERPRETER] = "1"
    import fxquant.kernels.cuda.device.gemm
    import fxquant.kernels.cuda.device.rows
    import fxquant.kernels.cuda.device.weight_only  # noqa: F401

    del os.environ[INTERPRETER]


@pytest.fixture
def interpreted(monkeypatch):
    """Let the ops run their Triton kernels on CPU tensors."""
    if not TRITON:
        pytest.skip("Triton is not installed")
    if GPU:
        pytest.skip("with a GPU, Triton compiles: test_on_gpu.py runs these kernels there")
    monkeypatch.setenv(INTERPRETER, "1")
