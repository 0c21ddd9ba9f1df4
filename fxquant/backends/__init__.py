"""Backend files: which ops run on which kernels, how they are quantized by default, and what the kernels can do."""

from fxquant.backends.load import load_backend, packaged_backends, read_backend, registered_vocabulary
from fxquant.backends.schema import Backend, Limits, OpRule, Vocabulary

__all__ = [
    "Backend",
    "Limits",
    "OpRule",
    "Vocabulary",
    "load_backend",
    "packaged_backends",
    "read_backend",
    "registered_vocabulary",
]
