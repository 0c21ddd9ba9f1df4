"""Triton's interpreter for tests without a GPU.

Triton decides while kernels are imported whether they are to be interpreted. So they are imported here, before tests;
the ops go on taking their references, but in tests that ask for `interpreted`.
"""

import os
import pkgutil
from importlib import import_module
from importlib.util import find_spec

import pytest
import torch

from fxquant.kernels.cuda import device

INTERPRETER = "TRITON_INTERPRET"
GPU, TRITON = torch.cuda.is_available(), find_spec("triton") is not None

if TRITON and not GPU:
    os.environ[INTERPRETER] = "1"
    for module in pkgutil.iter_modules(device.__path__, f"{device.__name__}."):
        import_module(module.name)
    del os.environ[INTERPRETER]


@pytest.fixture
def interpreted(monkeypatch):
    """Let the ops run their Triton kernels on CPU tensors."""
    if not TRITON:
        pytest.skip("Triton is not installed")
    if GPU:
        pytest.skip("with a GPU, Triton compiles: test_on_gpu.py runs these kernels there")
    monkeypatch.setenv(INTERPRETER, "1")
