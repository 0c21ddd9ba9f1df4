"""Graphs of PyTorch 2 export quantization: their operators outwards and inwards, ExecuTorch, and a `Quantizer`."""
