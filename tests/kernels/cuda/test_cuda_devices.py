"""Where the CUDA kernels run: each GPU, or that there is none, and a CPU in any case."""

import pytest
import torch

from fxquant.kernels.cuda import devices, triton_support
from fxquant.kernels.devices import DEVICES


def names(monkeypatch, count, **more):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda place: "card")
    for name, value in more.items():
        monkeypatch.setattr(devices, name, value)
    return {device.name: device for device in DEVICES["cuda"]()}


def test_without_a_gpu_references_run(monkeypatch):
    listed = names(monkeypatch, 0, interpreting=lambda: False)
    assert list(listed) == ["references on a CPU", "cuda"]
    assert listed["cuda"].missing == "torch finds no GPU"
    assert listed["references on a CPU"].missing is None


@pytest.mark.parametrize("refusal", [None, "too old"])
def test_each_gpu_is_a_place_of_its_own(monkeypatch, refusal):
    listed = names(monkeypatch, 2, refusal=lambda place: refusal, interpreting=lambda: True)
    assert list(listed) == ["Triton's interpreter", "card, cuda:0", "card, cuda:1"]
    second = listed["card, cuda:1"]
    assert (second.place, second.missing) == (torch.device("cuda", 1), refusal)


def test_an_old_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(triton_support, "installed", lambda: True)
    monkeypatch.setattr(triton_support, "capability", lambda device: (9, 0) if device.index else (7, 5))
    listed = names(monkeypatch, 2)
    assert "need compute capability 8.0; cuda:0 has 7.5" in listed["card, cuda:0"].missing
    assert listed["card, cuda:1"].missing is None
