import pytest
from instruction_sets import using

from fxquant.kernels.cpu.isa import NATIVE


@pytest.fixture(params=NATIVE)
def native_isa(request):
    """Run the test on each instruction set of the C++ kernels that this CPU has."""
    with using(request.param) as name:
        yield name
