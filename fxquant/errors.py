"""The exceptions users see, and the wording that every one of them shares.

A message says what was found, what was expected and what would work. Internal invariants use `assert`, never these.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class FxQuantError(Exception):
    """Base of every error that fxquant raises on purpose."""


class FxQuantWarning(UserWarning):
    """Something that the user should know of and that stops nothing."""


class CaptureError(FxQuantError):
    """A model could not be turned into an fx graph."""


class InputError(FxQuantError):
    """A graph was called with arguments other than those it was captured with."""


class ConfigError(FxQuantError):
    """A backend file, a recipe or a quantization scheme is wrong."""


class CalibrationError(FxQuantError):
    """Calibration data cannot give ranges."""


class CoverageError(FxQuantError):
    """`strict=True` and an op that should be quantized stays in float."""


class DataError(FxQuantError):
    """A text, a batch or a model folder that is given to be measured cannot be used."""


class ExportError(FxQuantError):
    """A graph cannot be written for another runtime, or what it was to be written to is in the way."""


class ArtifactError(FxQuantError):
    """A saved artifact is damaged, altered, too new, or in the way."""


class MissingExtraError(FxQuantError, ImportError):
    """A package that an integration needs is not installed, or too old."""


class CheckError(FxQuantError):
    """A check found what does not hold; `report` is all that it found."""

    def __init__(self, message: str, report: str) -> None:
        super().__init__(message)
        self.report = report


def suggest(name: object, known: Iterable[str]) -> str:
    """Return "; did you mean 'X'? Known: …" for a name that is not among `known`."""
    names = sorted(known)
    close = get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}Known: {', '.join(names) if names else '(none)'}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, which tells what; torch adds traces of its own code to it."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
