"""Makes `blocks` of the tests of ONNX importable, and skips where OpenVINO or what it is written with is missing."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "onnx"))


@pytest.fixture(autouse=True, scope="session")
def _packages():
    for name in ("onnx", "onnxscript", "openvino"):
        pytest.importorskip(name)
