"""What the CUDA kernels can run on: each GPU, and on a CPU their references, or Triton's interpreter if it is on."""

from collections.abc import Iterator

import torch

from fxquant.kernels.cuda.triton_support import interpreting, refusal
from fxquant.kernels.devices import Device, devices


@devices("cuda")
def cuda_devices() -> Iterator[Device]:
    """Yield what a CPU runs, and each GPU, or why there is none."""
    yield Device("Triton's interpreter" if interpreting() else "references on a CPU")
    if not torch.cuda.is_available():
        yield Device("cuda", missing="torch finds no GPU")
    for index in range(torch.cuda.device_count()):
        place = torch.device("cuda", index)
        yield Device(f"{torch.cuda.get_device_name(place)}, {place}", missing=refusal(place), place=place)
