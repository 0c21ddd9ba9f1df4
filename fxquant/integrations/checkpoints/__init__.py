"""Quantized checkpoints of other tools: their integers, scales and zero points as fxquant graphs, and back."""
