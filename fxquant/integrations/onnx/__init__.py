"""ONNX: the Q/DQ graph brought into the dialect of a runtime, then written by torch's exporter."""
