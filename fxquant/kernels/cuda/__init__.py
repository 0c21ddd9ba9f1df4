"""Kernels for NVIDIA GPUs, in Triton: 8-bit products of 8-bit activations and weights, with what stands around them."""
