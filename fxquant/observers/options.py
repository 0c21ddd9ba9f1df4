"""The options of an observer: what each may be, and the errors that say so."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from fxquant.errors import ConfigError, suggest
from fxquant.spec import QuantSpec


@dataclass(frozen=True)
class Option:
    """One option of an observer: its default, the test that a value must pass, and that test in words."""

    default: Any
    accepts: Callable[[Any], bool]
    expected: str


def is_number(value: object) -> TypeGuard[int | float]:
    """Say whether `value` is an int or a float; true and false are neither."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def read_options(spec: QuantSpec, known: Mapping[str, Option]) -> dict[str, Any]:
    """Return the value of every option in `known`: the one that `spec` gives, else the default.

    Raises:
        ConfigError: `spec` gives an option that is not known, or a value that the option does not accept.
    """
    where = f"observer {spec.observer!r}"
    values = {name: option.default for name, option in known.items()}
    for name, value in spec.options:
        if name not in known:
            raise ConfigError(f"{where} has no option {name!r}: {suggest(name, known)}")
        if not known[name].accepts(value):
            raise ConfigError(f"{where}: {name} = {value!r}: expected {known[name].expected}")
        values[name] = value
    return values
