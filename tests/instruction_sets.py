"""Instruction sets of the C++ kernels, in tests."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from fxquant.kernels.cpu import native


@contextmanager
def using(name: str) -> Iterator[str]:
    """Use an instruction set of the C++ kernels; skips the test where they could not be built or the CPU lacks it."""
    if not native.available():
        pytest.skip("the C++ kernels are not available")
    before = native.use_isa("")
    try:
        native.use_isa(name)
    except RuntimeError:
        pytest.skip(f"this CPU has no {name}")
    try:
        yield name
    finally:
        native.use_isa(before)
