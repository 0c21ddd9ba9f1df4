"""Makes `pt2e_graphs` importable, and keeps back what torchao says of itself when it is loaded."""

import logging
import sys
import warnings
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def torchao():
    """The package, or a skip: pip install fxquant[pt2e]."""
    logging.getLogger("torchao").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("torchao.quantization.pt2e.quantize_pt2e")
