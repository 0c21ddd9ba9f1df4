"""Small backend files as text."""


def weights_alone(name, op="embedding"):
    """Return a file with one rule: `op` on weights per channel, on the reference's int8 kernel for it."""
    return f"""
name = "{name}"
kernels = "reference"
[spec.weight]
symmetric = true
granularity = "per-channel"
[[op]]
use = "{op}"
kernel = "{op}_int8"
weight = "weight"
"""
