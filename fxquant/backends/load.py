"""Finding backends: the packaged files by name, the user's own by path."""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from fxquant.backends.schema import Backend, Vocabulary
from fxquant.config import expect, read_toml, required, within
from fxquant.errors import ConfigError, suggest
from fxquant.kernels.table import check_pairing, kernel_names
from fxquant.observers import OBSERVERS
from fxquant.ops import OPS


def packaged_backends() -> tuple[str, ...]:
    """Return the names of the backends that come with fxquant."""
    names = (each.name for each in files("fxquant.backends").iterdir())
    return tuple(sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml")))


def registered_vocabulary(kernel_set: str) -> Vocabulary:
    """Return every registered op with its roles, the kernels of `kernel_set` and the observers."""
    return Vocabulary({name: OPS[name].roles for name in OPS}, kernel_names(kernel_set), tuple(OBSERVERS))


def read_backend(data: Mapping[str, Any], source: str) -> Backend:
    """Build a backend from the data of its file, or from `Backend.to_dict`, with what is registered now."""
    with within(source):
        vocabulary = registered_vocabulary(required(data, "kernels", str))
    backend = Backend.from_dict(data, source, vocabulary)
    for number, rule in enumerate(backend.rules, 1):
        if rule.kernel is not None:
            with within(f"{source}: [[op]] {number} ({rule.use})"):
                check_pairing(backend.kernels, rule.kernel, rule.use, frozenset(rule.roles))
    return backend


def load_backend(name_or_path: str | Path | Backend) -> Backend:
    """Return a backend.

    Args:
        name_or_path: the name of a packaged backend, the path of a .toml file (a str counts as one if it ends in
            .toml or has a directory part), or a Backend, which is returned as it is.

    Raises:
        ConfigError: no such backend or file, or the file is wrong; names the file, the place and what is known.
    """
    if isinstance(name_or_path, Backend):
        return name_or_path
    if isinstance(name_or_path, Path):
        return read_backend(read_toml(name_or_path), str(name_or_path))
    name = expect("backend", name_or_path, str)
    if name.endswith(".toml") or Path(name).name != name:
        return read_backend(read_toml(Path(name)), name)
    if name not in packaged_backends():
        known = suggest(name, packaged_backends())
        raise ConfigError(f"unknown backend {name!r}: {known}. The path of your own .toml file is accepted, too")
    packaged = Path(str(files("fxquant.backends").joinpath(f"{name}.toml")))
    return read_backend(read_toml(packaged), packaged.name)
