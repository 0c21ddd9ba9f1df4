"""Measuring quantized models: per-layer error, embeddings, time, and which kernels ran. Never edits a graph."""
