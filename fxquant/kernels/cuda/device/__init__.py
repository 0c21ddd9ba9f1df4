"""Triton code, for the device. Loaded when a kernel runs first: Triton may be missing, and is slow to load."""
