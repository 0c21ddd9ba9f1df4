"""Packages that an integration needs and a plain installation of fxquant does not bring."""

from importlib.util import find_spec

from fxquant.errors import ConfigError


def require(extra: str, packages: tuple[str, ...], purpose: str) -> None:
    """Raise `ConfigError` naming the extra to install where one of `packages` is missing."""
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise ConfigError(f"{purpose} needs {' and '.join(missing)}: pip install fxquant[{extra}]")
