"""What the ARM kernels can run on: instruction sets of this CPU or of an emulated one, qnnpack, and PyTorch."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from fxquant.kernels.arm import emulated, qnnpack
from fxquant.kernels.cpu.devices import native_devices
from fxquant.kernels.cpu.isa import NATIVE, PROCESSORS, forcing
from fxquant.kernels.devices import Device, devices


@devices("arm")
def arm_devices() -> Iterator[Device]:
    """Yield the instruction sets, emulated where this CPU is of another kind, and the roads of the ARM kernels."""
    names = PROCESSORS["arm"]
    yield from native_devices(names)
    for name in names if names != NATIVE else ():
        by = partial(emulated.multiply, name)
        yield Device(f"{name} (emulated)", missing=emulated.missing_tool(), multiply=by, graphs=False)
    absent = None if qnnpack.ENGINE in qnnpack.engines() else "this build of torch has no such engine"
    yield Device("torch qnnpack", missing=absent, entered=partial(forcing, qnnpack.ENGINE), multiply=qnnpack_products)
    yield Device("torch portable", entered=partial(forcing, "portable"))


def qnnpack_products(q: Tensor, weight: Tensor) -> Tensor:
    """Return Σ_k q·weight as int32 (M, N) by qnnpack, for q (M, K) uint8 or int8 and weight (N, K) int8.

    The engine gives sums only of floats that it quantizes itself. Whole numbers from 0 to 255, both of them there, it
    quantizes to themselves.
    """
    excess = 128 if q.dtype is torch.int8 else 0
    ends = torch.tensor([0.0, 255.0])[:, None].expand(2, q.shape[1])
    whole = torch.cat([q.float() + excess, ends])
    sums = qnnpack.linear_dynamic_int8(whole, weight, torch.ones(()), None, None, "none")[: len(q)]
    return sums.to(torch.int32) - excess * weight.sum(dim=1, dtype=torch.int32)
