"""Packages that only integrations need: found, new enough, or an error that says how to get them."""

import importlib
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

from fxquant.errors import MissingExtraError


def need(package: str, extra: str, purpose: str, least: tuple[int, ...] = ()) -> ModuleType:
    """Return an installed package.

    Args:
        package: its name, as it is imported and installed.
        extra: the extra of fxquant that brings it.
        purpose: what needs it, for the message.
        least: the first numbers of the oldest version that will do.

    Raises:
        MissingExtraError: it is not installed, or too old; names the command that helps.
    """
    advice = f"pip install 'fxquant[{extra}]'"
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        raise MissingExtraError(
            f"{purpose} needs the package {package}, which cannot be imported ({error}): {advice}"
        ) from None
    if least and _numbers(package) < least:
        wanted = ".".join(map(str, least))
        raise MissingExtraError(f"{purpose} needs {package} {wanted} or newer, found {version(package)}: {advice}")
    return module


def _numbers(package: str) -> tuple[int, ...]:
    """Return the first numbers of a package's version; of a source tree without metadata, no limit is known."""
    try:
        parts = version(package).split(".")
    except PackageNotFoundError:
        return (10**6,)
    return tuple(int(part) for part in parts[:2] if part.isdigit())
