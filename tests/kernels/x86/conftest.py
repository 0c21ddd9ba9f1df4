import pytest

from fxquant.kernels.cpu.isa import VARIABLE
from fxquant.kernels.x86.isa import isa


@pytest.fixture
def on_isa(monkeypatch):
    """Return a function that makes the kernels use the ISA it is given."""

    def force(name):
        monkeypatch.setenv(VARIABLE, name)
        isa.cache_clear()

    yield force
    monkeypatch.undo()
    isa.cache_clear()


@pytest.fixture(params=["portable", "onednn"])
def each_isa(request, on_isa):
    """Run the test on the portable kernels and, where this machine is exact with them, on oneDNN's."""
    if request.param == "onednn" and isa() != "onednn":
        pytest.skip("oneDNN's 8-bit GEMMs saturate on this machine")
    on_isa(request.param)
    return request.param
