"""Memory that the C library holds though nothing uses it."""

import ctypes
from functools import cache


def give_back() -> None:
    """Return freed memory to the system, where the C library can: glibc keeps what lies between live blocks.

    Quantizing and packing copy every weight, so that these holes come to the size of the weights.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> "ctypes._NamedFuncPointer | None":
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library; Windows has none of that name
        return None
