"""What the CUDA kernels can run on: each GPU, and on a CPU their references, or Triton's interpreter if it is on."""

from collections.abc import Iterator

import torch

from fxquant.kernels.cuda.triton_support import interpreting, refusal
from fxquant.kernels.devices import Device, devices


@devices("cuda")
def cuda_devices() -> Iterator[Device]:
    """Yield each GPU, or why there is none, and what a CPU runs."""
    if not torch.cuda.is_available():
        yield Device("cuda", missing="torch finds no GPU")
    for index in range(torch.cuda.device_count()):
        place = torch.device("cuda", index)
        yield Device(f"{place} {torch.cuda.get_device_name(place)}", missing=refusal(place), place=place)
    yield Device("Triton's interpreter" if interpreting() else "references on a CPU")
