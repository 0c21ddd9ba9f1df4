"""The ARM roads that give products alone: the emulated core and qnnpack, against int64 arithmetic."""

import platform

import pytest
import torch

from fxquant.kernels.arm import devices, emulated, qnnpack
from fxquant.kernels.cpu.isa import PROCESSORS
from fxquant.kernels.devices import DEVICES


def extremes(m, n, k, dtype):
    """Random integers that meet both ends of their ranges, and columns of these ends alone."""
    low, high = (0, 255) if dtype is torch.uint8 else (-128, 127)
    generator = torch.Generator().manual_seed(m * n * k)
    q = torch.randint(low, high + 1, (m, k), generator=generator).to(dtype)
    weight = torch.randint(-127, 128, (n, k), generator=generator).to(torch.int8)
    q[0], weight[0], weight[-1] = high, 127, -127
    return q, weight


SHAPES = [(1, 1, 1), (2, 70, 33), (6, 5, 130)]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8], ids=str)
@pytest.mark.parametrize("isa", PROCESSORS["arm"])
def test_emulated_products_are_exact(isa, dtype):
    if missing := emulated.missing_tool():
        pytest.skip(missing)
    for shape in SHAPES:
        q, weight = extremes(*shape, dtype)
        assert torch.equal(emulated.multiply(isa, q, weight), (q.long() @ weight.long().t()).int())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8], ids=str)
def test_qnnpack_products_are_exact(dtype):
    if qnnpack.ENGINE not in qnnpack.engines():
        pytest.skip("this build of torch has no qnnpack")
    for shape in SHAPES:
        q, weight = extremes(*shape, dtype)
        assert torch.equal(devices.qnnpack_products(q, weight), (q.long() @ weight.long().t()).int())


def test_what_is_missing_is_said(monkeypatch):
    monkeypatch.setattr(emulated.shutil, "which", lambda tool: None)
    monkeypatch.setattr(qnnpack, "engines", lambda: ["none"])
    listed = {device.name: device for device in DEVICES["arm"]()}
    assert listed["torch qnnpack"].missing == "this build of torch has no such engine"
    assert listed["torch portable"].missing is None
    if platform.machine() == "x86_64":
        assert listed["cpu neon"].missing == "this CPU is x86_64"
        assert listed["neon (emulated)"].missing == "aarch64-linux-gnu-g++ and qemu-aarch64 are not installed"


def test_a_program_that_fails_says_so(monkeypatch):
    q, weight = extremes(1, 1, 1, torch.uint8)
    if missing := emulated.missing_tool():
        pytest.skip(missing)
    with pytest.raises(RuntimeError, match="qemu-aarch64 ended with 2 and said: nothing"):
        emulated.multiply("sve", q, weight)
