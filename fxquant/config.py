"""Reading of the project's TOML files: checks of keys and types whose errors name the file and the place.

Only what every kind of file shares lives here; what the keys mean belongs to the reader of each kind.
"""

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from fxquant.errors import ConfigError, suggest

T = TypeVar("T")
_KINDS: dict[type, str] = {str: "a string", bool: "true or false", int: "an integer", dict: "a table", list: "a list"}


@contextmanager
def within(place: str) -> Iterator[None]:
    """Prefix every `ConfigError` raised inside with "`place`: "; an empty place adds nothing."""
    try:
        yield
    except ConfigError as error:
        if not place:
            raise
        raise ConfigError(f"{place}: {error}") from None


def read_toml(path: Path) -> dict[str, Any]:
    """Return what a TOML file holds.

    Raises:
        ConfigError: the file is missing, a directory, unreadable or no UTF-8 text, or, with its line, no valid TOML.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a directory; give the path of a .toml file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is no UTF-8 text (byte {error.start}); give a .toml file") from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}:{_line(error, text)}: not valid TOML: {error}") from None


def _line(error: tomllib.TOMLDecodeError, text: str) -> int:
    stated = re.search(r"at line (\d+)", str(error))
    return int(stated[1]) if stated else text.count("\n") + 1


def known_keys(data: Mapping[str, object], known: Iterable[str]) -> None:
    """Raise `ConfigError` for a key of `data` that is not among `known`."""
    names = list(known)
    for key in data:
        if key not in names:
            raise ConfigError(f"unknown key {key!r}: {suggest(key, names)}")


def known_name(key: str, value: str, known: Iterable[str], kind: str) -> None:
    """Raise `ConfigError` where the `value` of `key` is none of the `known` names of its `kind`."""
    names = list(known)
    if value not in names:
        raise ConfigError(f"{key} = {value!r} is no known {kind}: {suggest(value, names)}")


def expect(key: str, value: object, kind: type[T]) -> T:
    """Return `value` if it is of `kind` (a bool is no int), else raise `ConfigError`."""
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise ConfigError(f"{key} = {value!r}: expected {_KINDS[kind]}, got {type(value).__name__}")


def required(data: Mapping[str, object], key: str, kind: type[T]) -> T:
    """Return `data[key]`, which has to be there and of `kind`."""
    if key not in data:
        raise ConfigError(f"the key {key!r} is missing: expected {_KINDS[kind]}")
    return expect(key, data[key], kind)


def tables(data: Mapping[str, object], key: str) -> dict[str, dict[str, Any]]:
    """Return the tables inside the optional table `key`, as in [key.first] and [key.second]."""
    found = expect(key, data.get(key, {}), dict)
    return {name: expect(f"{key}.{name}", value, dict) for name, value in found.items()}
