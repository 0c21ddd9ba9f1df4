"""fxquant as a quantizer of transformers.

Importing transformers' table of quantizers makes it import ours (plugin.py), so that must happen before a module in
here is half read.
"""

from transformers.quantizers import auto

__all__ = ["auto"]
