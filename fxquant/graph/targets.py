"""What a node of a saved graph may call, by name: ATen and `fxquant` operators, arithmetic on sizes, nothing else."""

import math
import operator
import re
from collections.abc import Callable
from typing import Any

import torch

from fxquant.errors import ArtifactError, suggest

NAMESPACES = ("aten", "fxquant")
_OPERATOR = re.compile(r"(aten|fxquant)\.([A-Za-z_]\w*)\.([A-Za-z_]\w*)", re.ASCII)
# Operators of ATen that reach outside their arguments.
_REFUSED = {"aten::from_file": "it opens a file", "aten::_print": "it writes to the terminal"}

# What torch.export leaves in a graph for symbolic sizes.
_OPERATORS = (
    "getitem add sub mul truediv floordiv mod pow neg pos abs eq ne lt le gt ge and_ or_ not_".split()  # noqa: SIM905
)
_SYMBOLIC = ("sym_int", "sym_float", "sym_max", "sym_min", "sym_not", "sym_ite", "sym_sum")
FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{f"operator.{name}": getattr(operator, name) for name in _OPERATORS},
    **{f"torch.{name}": getattr(torch, name) for name in _SYMBOLIC},
    **{f"math.{name}": getattr(math, name) for name in ("ceil", "floor", "trunc")},
    "torch.sym_sqrt": torch._sym_sqrt,  # type: ignore[attr-defined]  # torch exports it under no public name
}
_EXPECTED = f"which an artifact cannot: expected an operator of {' or '.join(NAMESPACES)}, or arithmetic on sizes"
_NAMES = {function: name for name, function in FUNCTIONS.items()}


def name_of(target: Any) -> str:
    """Return the name by which `resolve` finds a callee.

    Raises:
        ArtifactError: an artifact cannot name it.
    """
    if isinstance(target, torch._ops.OpOverload):
        name = str(target)
        resolve(name)
        return name
    try:
        return _NAMES[target]
    except (KeyError, TypeError):
        shown = getattr(target, "__name__", None) or str(target)
        raise ArtifactError(f"it calls {shown}, {_EXPECTED}") from None


def resolve(name: Any) -> Callable[..., Any]:
    """Return the operator or function called `name`.

    Only names that are registered as operators are looked up, never attributes, and only in `NAMESPACES`.

    Raises:
        ArtifactError: there is no such operator here, or none that an artifact may call.
    """
    if isinstance(name, str) and name in FUNCTIONS:
        return FUNCTIONS[name]
    match = _OPERATOR.fullmatch(name) if isinstance(name, str) else None
    if match is None:
        raise ArtifactError(f"it calls {str(name)[:80]!r}, {_EXPECTED}")
    namespace, base, overload = match.groups()
    schema = f"{namespace}::{base}"
    if schema in _REFUSED:
        raise ArtifactError(f"it calls {name}, which no artifact may: {_REFUSED[schema]}")
    if not _registered(schema if overload == "default" else f"{schema}.{overload}"):
        raise ArtifactError(
            f"it calls {name}, which torch {torch.__version__} does not have: load it with the torch that saved it"
        )
    found = getattr(getattr(getattr(torch.ops, namespace), base), overload)
    assert isinstance(found, torch._ops.OpOverload), f"{name} has a kernel and is no operator"
    return found


def _registered(operator: str) -> bool:
    try:
        return torch._C._dispatch_has_kernel(operator)
    except RuntimeError:  # not even a legal name
        return False


def check_arguments(target: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise `ArtifactError` where a callee cannot take so many arguments, or some of these names."""
    if not isinstance(target, torch._ops.OpOverload):
        if kwargs or not 0 < len(args) <= 3:
            raise ArtifactError(f"{_NAMES[target]} is called with {len(args)} arguments and the names {list(kwargs)}")
        return
    schema = target._schema.arguments
    positional = [argument.name for argument in schema if not argument.kwarg_only]
    names = [argument.name for argument in schema]
    if len(args) > len(positional):
        raise ArtifactError(f"{target} is called with {len(args)} arguments and takes {len(positional)}")
    for name in kwargs:
        if name not in names:
            raise ArtifactError(f"{target} has no argument {name[:80]!r}: {suggest(name, names)}")
