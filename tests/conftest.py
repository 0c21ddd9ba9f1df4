"""Settings that every test runs under: no network, two threads, and `models` importable from any tests folder."""

import gc
import os
import sys
from importlib.util import find_spec
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
# Two test processes share the cores: a thread that waits for its team must not spin. Read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).parent))

import pytest
import torch

if not torch.cuda.is_available() and find_spec("triton") is not None:
    # Triton decides when it is loaded, which torch may do at any time, whether its own library can be interpreted.
    os.environ["TRITON_INTERPRET"] = "1"
    import triton  # noqa: F401

    del os.environ["TRITON_INTERPRET"]

import torch._dynamo

torch.set_num_threads(2)
# Capturing asks torch for the sizes of results; to remember them pays off for models of many layers, not for tiny ones.
torch._dynamo.config.fake_tensor_cache_enabled = False


def pytest_collection_finish():
    """Spare the garbage collector what lives as long as the process: the libraries and thousands of collected tests."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 20)


def pytest_unconfigure():
    """Let libraries take themselves down: what is frozen would be reported as leaking."""
    gc.unfreeze()


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
