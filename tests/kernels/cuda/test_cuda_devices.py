"""Where the CUDA kernels run: each GPU, or that there is none, and a CPU in any case."""

import pytest
import torch

from fxquant.kernels.cuda import devices
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
    assert list(listed) == ["cuda", "references on a CPU"]
    assert listed["cuda"].missing == "torch finds no GPU"
    assert listed["references on a CPU"].missing is None


@pytest.mark.parametrize("refusal", [None, "too old"])
def test_each_gpu_is_a_place_of_its_own(monkeypatch, refusal):
    listed = names(monkeypatch, 2, refusal=lambda place: refusal, interpreting=lambda: True)
    assert list(listed) == ["cuda:0 card", "cuda:1 card", "Triton's interpreter"]
    second = listed["cuda:1 card"]
    assert (second.place, second.missing) == (torch.device("cuda", 1), refusal)
