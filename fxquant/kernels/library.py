"""The `fxquant` operator namespace: the one torch.library.Library that every op is defined in.

Plain Python functions are registered straight with the dispatcher, which costs a few microseconds a call; the checks
that torch.library.custom_op adds around every call cost several times as much.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch.library import Library, register_fake

LIBRARY = Library("fxquant", "FRAGMENT")  # type: ignore[no-untyped-call]


def define(schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Define the op `schema` in the namespace, run by `implementation` on real and by `fake` on fake or meta tensors.

    The implementation must be functional: it changes no input and returns no alias of one. It runs below autograd;
    these ops have no gradient, and torch warns when one is asked for.
    """
    name = schema.partition("(")[0]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))  # type: ignore[no-untyped-call]
    LIBRARY.impl(name, _below_autograd(implementation), "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    register_fake(f"fxquant::{name}", fake, lib=LIBRARY)


def implement(name: str, implementation: Callable[..., Any], device: str) -> None:
    """Let the op `name` run `implementation` on a kind of device, called as the dispatcher calls it ("CUDA")."""
    LIBRARY.impl(name, _below_autograd(implementation), device)  # type: ignore[no-untyped-call]


def _below_autograd(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def run(*args: Any) -> Any:
        # What happens inside is not to be recorded; the operations are a little faster too.
        with torch._C._AutoDispatchBelowAutograd():
            return function(*args)

    return run
