"""`modules_to_not_convert`: which modules of a model it means, by the rules of transformers."""

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from transformers.quantizers.quantizers_utils import should_convert_module

from fxquant.errors import ConfigError, FxQuantWarning, suggest


def skipped_modules(paths: Sequence[str], patterns: Sequence[str], model: str) -> list[str]:
    """Return the paths of the modules that the patterns mean; of one inside another, the outer alone.

    Args:
        paths: those of all modules.
        patterns: what the user wrote.
        model: what messages call it.

    Raises:
        ConfigError: a pattern is no regular expression.

    Warns:
        FxQuantWarning: a pattern means no module.
    """
    for pattern in patterns:
        try:
            meant = [path for path in paths if not should_convert_module(path, [pattern])]
        except re.error as error:
            raise ConfigError(f"modules_to_not_convert: {pattern!r} is no regular expression: {error}") from None
        if not meant:
            text = f"modules_to_not_convert: {pattern!r} is no module of a {model}; {suggest(pattern, paths)}"
            warnings.warn(text, FxQuantWarning, stacklevel=2)
    skipped = {path for path in paths if patterns and not should_convert_module(path, list(patterns))}
    return sorted(path for path in skipped if not any(path.startswith(f"{outer}.") for outer in skipped))


@contextmanager
def unmatched_unsaid(skipped: Sequence[str]) -> Iterator[None]:
    """Keep quiet that no op is in a module to skip: both it and what is in it are overrides, and one may have none."""
    with warnings.catch_warnings():
        if skipped:
            named = "|".join(map(re.escape, skipped))
            warnings.filterwarnings("ignore", rf"the override path = '({named})(\.\*)?'", FxQuantWarning)
        yield
