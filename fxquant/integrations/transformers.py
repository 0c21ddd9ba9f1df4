"""fxquant in transformers: the config for `from_pretrained`, its quantizer, and the quantizer for its exporters."""

from fxquant.integrations.extras import need

need("transformers", "transformers", "fxquant.integrations.transformers", (5, 17))

from fxquant.integrations.hf.config import FxQuantConfig  # noqa: E402, after the check
from fxquant.integrations.hf.quantizer import FxHfQuantizer  # noqa: E402

__all__ = ["FxHfQuantizer", "FxQuantConfig"]
