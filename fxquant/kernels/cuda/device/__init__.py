"""Triton code, for the device. Loaded when a kernel runs first: Triton may be missing, and is slow to load."""

# Of every launch: products and sums are rounded apart, as written, so results do not hang on the compiler's choice.
OPTIONS = {"enable_fp_fusion": False}
