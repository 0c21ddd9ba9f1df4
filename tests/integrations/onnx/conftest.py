"""Makes `blocks` importable, and skips where what these tests run is not installed: pip install fxquant[onnx]."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True, scope="session")
def _packages():
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
