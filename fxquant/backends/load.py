"""Finding backends: the packaged files and those of installed packages by name, the user's own by path."""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from fxquant.backends.plugins import load_plugins, plugin_file, plugin_names
from fxquant.backends.schema import Backend, Vocabulary
from fxquant.config import expect, read_toml, required, within
from fxquant.errors import ConfigError, suggest
from fxquant.kernels.table import KERNEL_SETS, check_pairing, kernel_names
from fxquant.observers import OBSERVERS
from fxquant.ops import OPS


def packaged_backends() -> tuple[str, ...]:
    """Return the names of the backends that come with fxquant."""
    names = (each.name for each in files("fxquant.backends").iterdir())
    return tuple(sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml")))


def known_backends() -> tuple[str, ...]:
    """Return the names that `load_backend` takes: the packaged ones first, then those of installed packages."""
    return tuple(dict.fromkeys((*packaged_backends(), *plugin_names())))


def registered_vocabulary(kernel_set: str) -> Vocabulary:
    """Return every registered op with its roles, the kernels of `kernel_set` and the observers.

    A set that is not registered may be an installed package's: those are loaded then.
    """
    if kernel_set not in KERNEL_SETS:
        load_plugins()
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
        name_or_path: the name of a packaged backend or of one that an installed package brings (plugins.py), the path
            of a .toml file (a str counts as one if it ends in .toml or has a directory part), or a Backend, which is
            returned as it is.

    Raises:
        ConfigError: no such backend or file, or the file is wrong; names the file, the place and what is known.
    """
    if isinstance(name_or_path, Backend):
        return name_or_path
    path = backend_file(name_or_path)
    return read_backend(read_toml(path), path.name if name_or_path in packaged_backends() else str(path))


def backend_file(name_or_path: str | Path) -> Path:
    """Return the file of a backend, named as for `load_backend`; an installed package's is imported then.

    Raises:
        ConfigError: no backend has that name, or its package cannot be imported. Whether there is a file is not asked.
    """
    if isinstance(name_or_path, Path):
        return name_or_path
    name = expect("backend", name_or_path, str)
    if name.endswith(".toml") or Path(name).name != name:
        return Path(name)
    if name in packaged_backends():
        return Path(str(files("fxquant.backends").joinpath(f"{name}.toml")))
    if name in plugin_names():
        return plugin_file(name)
    known = suggest(name, known_backends())
    raise ConfigError(f"unknown backend {name!r}: {known}. The path of your own .toml file is accepted, too")
