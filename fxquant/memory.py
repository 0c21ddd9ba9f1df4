"""Memory: what the C library holds though nothing uses it, and errors that say there is none."""

import ctypes
from functools import cache

import torch


def give_back() -> None:
    """Return freed memory to the system, where the C library can: glibc keeps what lies between live blocks.

    Quantizing and packing copy every weight, so that these holes come to the size of the weights.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error is that there is no memory: Python's, or torch's of a CPU or another device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)


@cache
def _trim() -> "ctypes._NamedFuncPointer | None":
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library; Windows has none of that name
        return None
