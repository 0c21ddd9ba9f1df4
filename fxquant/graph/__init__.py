"""Graphs: capturing, entering, editing, matching and printing them. Nothing here knows of quantization schemes."""
