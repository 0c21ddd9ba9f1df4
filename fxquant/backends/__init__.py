"""Backend files: which ops run on which kernels, how they are quantized by default, and what the kernels can do."""

from fxquant.backends.load import (
    backend_file,
    known_backends,
    load_backend,
    packaged_backends,
    read_backend,
    registered_vocabulary,
)
from fxquant.backends.schema import Backend, Limits, OpRule, Vocabulary

__all__ = [
    "Backend",
    "Limits",
    "OpRule",
    "Vocabulary",
    "backend_file",
    "known_backends",
    "load_backend",
    "packaged_backends",
    "read_backend",
    "registered_vocabulary",
]
