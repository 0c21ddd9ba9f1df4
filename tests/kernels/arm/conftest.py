import pytest
import torch

from fxquant.kernels.cpu import native
from fxquant.kernels.cpu.isa import VARIABLE


@pytest.fixture
def stand_in(monkeypatch):
    """Return a function that makes lowering take the stand-in of this name in place of the C++ kernels."""

    def force(name):
        if name == "qnnpack" and name not in torch.backends.quantized.supported_engines:
            pytest.skip("this build of torch has no qnnpack")
        monkeypatch.setenv(VARIABLE, name)
        monkeypatch.setattr(native, "_usable", native._usable.__wrapped__)

    return force
