"""OpenVINO's own files: what of a Q/DQ graph its ONNX reader cannot be told."""
