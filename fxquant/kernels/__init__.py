"""The `fxquant::` ops and the kernel sets; importing this package defines all of them."""

from fxquant.kernels import int4 as int4
from fxquant.kernels import qdq as qdq
from fxquant.kernels.arm import emitters as arm
from fxquant.kernels.cuda import emitters as cuda
from fxquant.kernels.reference import emitters as reference
from fxquant.kernels.x86 import emitters as x86

__all__ = ["arm", "cuda", "int4", "qdq", "reference", "x86"]
