"""What a symbolic size was in the example, by the names that the installed torch has for it.

torch's module of symbolic shapes brings sympy, half a second of every start; the first symbolic size loads it.
"""

from collections.abc import Callable
from functools import cache
from typing import Any


def has_hint(size: Any) -> bool:
    """Say whether the example had a value for a symbolic size."""
    return _functions()[0](size)


def hint_of(size: Any) -> int:
    """Return the value that a symbolic size had in the example."""
    return _functions()[1](size)


@cache
def _functions() -> tuple[Callable[[Any], bool], Callable[[Any], int]]:
    from torch.fx.experimental import symbolic_shapes as shapes  # noqa: PLC0415  as above

    if hasattr(shapes, "guarding_hint_or_throw"):
        return shapes.has_guarding_hint, shapes.guarding_hint_or_throw
    return shapes.has_hint, shapes.size_hint  # type: ignore[attr-defined]  # torch before 2.13
