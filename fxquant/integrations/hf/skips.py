"""`modules_to_not_convert`: which modules of a model it means, by the rules of transformers."""

import re
import warnings
from collections.abc import Sequence

from torch import nn
from transformers.quantizers.quantizers_utils import should_convert_module

from fxquant.errors import ConfigError, FxQuantWarning, suggest


def skipped_modules(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Return the paths of the modules that the patterns mean; of one inside another, the outer alone.

    Raises:
        ConfigError: a pattern is no regular expression.

    Warns:
        FxQuantWarning: a pattern means no module.
    """
    paths = [path for path, _ in model.named_modules() if path]
    for pattern in patterns:
        try:
            meant = [path for path in paths if not should_convert_module(path, [pattern])]
        except re.error as error:
            raise ConfigError(f"modules_to_not_convert: {pattern!r} is no regular expression: {error}") from None
        if not meant:
            found = f"modules_to_not_convert: {pattern!r} is no module of a {type(model).__name__}"
            text = f"{found}; {suggest(pattern, paths)}"
            warnings.warn(text, FxQuantWarning, stacklevel=2)
    skipped = [path for path in paths if patterns and not should_convert_module(path, list(patterns))]
    return sorted(path for path in skipped if not any(path.startswith(f"{outer}.") for outer in skipped))
