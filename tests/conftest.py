"""Settings that every test runs under: no network, two threads, and `models` importable from any tests folder."""

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
# Two test processes share the cores: a thread that waits for its team must not spin. Read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).parent))

import pytest
import torch

torch.set_num_threads(2)


@pytest.fixture
def float32_products():
    """Hold products of float numbers to float32, so that results can be compared closely; needs the C++ kernels."""
    from instruction_sets import using

    with using("avx2"):
        yield


@pytest.fixture
def float32_where_native(request):
    """As `float32_products`, but also where there are no C++ kernels, and so nothing to hold."""
    from fxquant.kernels.cpu import native

    if native.available():
        request.getfixturevalue("float32_products")
