"""Makes transformers know fxquant: at once where its quantizers are loaded already, else as soon as they are.

Importing fxquant does not import transformers, which takes seconds and which not every user has.
"""

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_THEIRS = "transformers.quantizers.auto"  # which holds the tables that quantizers are registered in
_OURS = "fxquant.integrations.hf.quantizer"


class _Registration(MetaPathFinder):
    """Imports our quantizer right after the module that it registers itself in, then goes."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of their module with our import behind its loading; of others None."""
        if fullname != _THEIRS:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            load(module)
            importlib.import_module(_OURS)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def register() -> None:
    """Let transformers load and save models that fxquant quantizes."""
    if _THEIRS in sys.modules:
        importlib.import_module(_OURS)
    else:
        sys.meta_path.insert(0, _Registration())
