"""Settings that every test runs under: no network, two threads, and `models` importable from any tests folder."""

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

torch.set_num_threads(2)

if not torch.cuda.is_available() and find_spec("triton") is not None:
    # Triton decides when it is loaded, which torch may do at any time, whether its own library can be interpreted.
    os.environ["TRITON_INTERPRET"] = "1"
    import triton  # noqa: F401

    del os.environ["TRITON_INTERPRET"]


@pytest.fixture
def float32_products():
    """Hold the kernels of attention to float32, so that results can be compared closely."""
    from instruction_sets import using

    with using("avx2"):
        yield
