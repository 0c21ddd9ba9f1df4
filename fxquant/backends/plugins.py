"""Backends that other installed packages bring, found by their entry points.

A package names one in its pyproject.toml, `[project.entry-points."fxquant.backends"]`, `npu = "fxquant_npu:backend"`:
a function without arguments that returns the path of the backend's file. Importing it registers its ops and kernels.
"""

import warnings
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from fxquant.errors import ConfigError, FxQuantWarning

GROUP = "fxquant.backends"


def plugin_names() -> tuple[str, ...]:
    """Return the names of the backends that installed packages bring; nothing is imported."""
    return tuple(sorted({each.name for each in entry_points(group=GROUP)}))


@cache
def plugin_file(name: str) -> Path:
    """Return the file of a package's backend, with its ops and kernels registered.

    Raises:
        ConfigError: the package cannot be imported, or gives no path of a file; names the package.
    """
    found = next(each for each in entry_points(group=GROUP) if each.name == name)
    try:
        path = found.load()()
    except Exception as error:  # whatever a foreign module raises when it is imported
        raise ConfigError(f"{_place(found)} cannot be loaded: {type(error).__name__}: {error}") from error
    if not isinstance(path, str | Path) or not Path(path).is_file():
        raise ConfigError(f"{_place(found)} gives {path!r}: expected the path of its .toml file")
    return Path(path)


def load_plugins() -> tuple[str, ...]:
    """Register what every package's backend brings; return the names of those that could be loaded.

    Warns:
        FxQuantWarning: one cannot be loaded, and is left out.
    """
    loaded = []
    for name in plugin_names():
        try:
            plugin_file(name)
            loaded.append(name)
        except ConfigError as error:
            warnings.warn(f"{error}. It is left out", FxQuantWarning, stacklevel=2)
    return tuple(loaded)


def _place(found: EntryPoint) -> str:
    package = found.dist.name if found.dist is not None else "an unknown package"
    return f"backend {found.name!r} of the package {package!r} ({found.value})"
