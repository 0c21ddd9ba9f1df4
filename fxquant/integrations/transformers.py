"""fxquant in transformers: the config for `from_pretrained`, its quantizer, and the quantizer for its exporters."""

from typing import Any

from fxquant.integrations.packages import need

need("transformers", "transformers", "fxquant.integrations.transformers", (5, 17))

from fxquant.integrations.hf.config import FxQuantConfig  # noqa: E402, after the check
from fxquant.integrations.hf.quantizer import FxHfQuantizer  # noqa: E402

__all__ = ["FxHfQuantizer", "FxQuantConfig"]


def __getattr__(name: str) -> Any:
    """Return `FxQuantizer`, which needs a newer transformers than the rest."""
    if name != "FxQuantizer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    need("transformers", "transformers", "FxQuantizer, for the exporters of transformers,", (5, 23))
    from fxquant.integrations.hf.export import FxQuantizer  # noqa: PLC0415

    return FxQuantizer
