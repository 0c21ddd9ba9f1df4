"""Graphs that generate: a model's decoding step with a flat cache, behind the model's own generation code."""
