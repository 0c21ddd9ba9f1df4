"""Which operators of torch stand in for the C++ kernels on x86: decided once, by asking the machine, or forced."""

from functools import cache

import torch

from fxquant.kernels.cpu.isa import forced_isa

_KNOWN = ("onednn", "portable")


@cache
def isa() -> str:
    """Return "onednn" where torch's 8-bit GEMMs are exact on this machine, else "portable".

    FXQUANT_ISA forces one of them; it is read at the first call only.
    """
    forced = forced_isa()
    if forced in _KNOWN:
        return forced
    return "onednn" if gemms_are_exact() else "portable"


def gemms_are_exact() -> bool:
    """Say whether torch's 8-bit GEMMs are here and exact, by a product of the largest operands.

    Without VNNI, or with oneDNN held to an older ISA, pairs of products saturate at int16.
    """
    if not (torch.cpu._is_vnni_supported() and torch.backends.mkldnn.is_available()):  # type: ignore[no-untyped-call]
        return False
    depth, width = 64, 16
    expected = torch.full((width, width), 255.0 * 127.0 * depth)
    x = torch.full((width, depth), 255, dtype=torch.uint8)
    weight = torch.full((width, depth), 127, dtype=torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(weight, None)
    ones, zeros = torch.ones(width), torch.zeros(width, dtype=torch.int32)
    y = torch.ops.onednn.qlinear_pointwise.default(
        x, 1.0, 0, packed, ones, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )
    sums = torch._int_mm(weight, weight.t())
    return torch.equal(y, expected) and bool((sums == 127 * 127 * depth).all())
