"""What the CUDA kernels can run on: each GPU, and a CPU, which runs their references."""

from collections.abc import Iterator

import torch

from fxquant.kernels.cuda.triton_support import refusal
from fxquant.kernels.devices import Device, devices


@devices("cuda")
def cuda_devices() -> Iterator[Device]:
    """Yield the references, and each GPU, or why there is none."""
    yield Device("references on the CPU")
    if not torch.cuda.is_available():
        yield Device("GPU", missing="torch finds no CUDA device here")
    for index in range(torch.cuda.device_count()):
        place = torch.device("cuda", index)
        yield Device(f"{torch.cuda.get_device_name(place)}, {place}", missing=refusal(place), place=place)
